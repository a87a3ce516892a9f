import csv
import io
import json
import shutil

import numpy as np
import pytest
from command_line import BACKBONE, SHAPES, draw, in_own_process

import headstart as package


@pytest.fixture
def extracted(headstart_json, photos):
    return headstart_json("extract", photos, "--backbone", BACKBONE)


def test_extract_reports_all_fields_and_the_counts_add_up(extracted, photos):
    assert extracted["images"] == 36
    assert extracted["embedded"] == 36
    assert extracted["reused"] == extracted["failed"] == 0
    assert extracted["failures"] == []
    assert (extracted["backbone"], extracted["dim"], extracted["device"]) == (BACKBONE, 1280, "cpu")
    assert set(extracted["stages"]) == {"list", "read", "decode", "forward", "write"}
    assert all(seconds > 0 for seconds in extracted["stages"].values())
    assert extracted["bound_by"] in {"decode", "forward", "write"}
    assert extracted["images_per_second"] > 0
    (space,) = extracted["spaces"]
    assert space["space"] == extracted["space"]
    assert set(space) == {"backbone", "layer", "pool", "dim", "space", "embedded", "reused"}


def test_a_second_run_embeds_nothing_and_imports_no_torch(extracted, photos, tmp_path):
    done, loaded = in_own_process("extract", photos, "--backbone", BACKBONE, "--json", cwd=tmp_path)
    again = json.loads(done.stdout)
    assert (again["embedded"], again["reused"], again["device"], again["bound_by"]) == (0, 36, "none", "")
    assert not loaded & {"torch", "torchvision", "sklearn", "PIL.Image"}


def test_exactly_the_new_bytes_are_embedded(extracted, headstart_json, photos):
    def again():
        done = headstart_json("extract", photos, "--backbone", BACKBONE)
        assert done["embedded"] + done["reused"] + done["failed"] == done["images"]
        return done["images"], done["embedded"]

    draw("circle", 100).save(photos / "circle" / "new.png")
    assert again() == (37, 1), "an added picture"
    (photos / "circle" / "00.jpg").rename(photos / "circle" / "renamed.jpg")
    assert again() == (37, 0), "a renamed picture"
    shutil.move(photos / "circle" / "01.jpg", photos / "cross" / "from-circle.jpg")
    assert again() == (37, 0), "a relabelled picture"
    shutil.copy(photos / "circle" / "02.jpg", photos / "circle" / "copy.jpg")
    assert again() == (38, 0), "a copied picture"
    draw("circle", 101).save(photos / "circle" / "03.jpg")
    assert again() == (38, 1), "an edited picture"
    (photos / "circle" / "04.jpg").unlink()
    assert again() == (37, 0), "a deleted picture"


def test_other_preprocessing_is_another_space_and_the_old_one_still_serves(extracted, headstart_json, photos):
    other = headstart_json("extract", photos, "--backbone", BACKBONE, "--crop", "160", "--resize", "160")
    assert other["embedded"] == 36
    assert other["space"] != extracted["space"]
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 0


def test_fit_evaluate_and_predict(extracted, headstart, headstart_json, photos, tmp_path):
    fit = headstart_json("fit-head")
    assert fit["out"] == f"models/photos-{BACKBONE}-logistic"
    assert (fit["head"], fit["backbone"], fit["dim"], fit["classes"]) == ("logistic", BACKBONE, 1280, list(SHAPES))
    assert fit["train"]["n"] + fit["val"]["n"] == 36
    assert fit["train"]["accuracy"] == 1.0
    assert fit["cv"]["folds"] == 5
    assert fit["cv"]["accuracy"] > 0.8
    assert fit["val"]["low"] < fit["val"]["accuracy"] <= fit["val"]["high"]
    assert fit["val"]["accuracy"] > fit["baseline"]["majority"]
    assert {"nearest_mean", "majority"} == set(fit["baseline"])
    assert isinstance(fit["C"], float)

    scores = headstart_json("evaluate", fit["out"])
    assert scores["n"] == fit["val"]["n"]
    assert scores["accuracy"] == pytest.approx(fit["val"]["accuracy"])
    assert np.array(scores["confusion"]).sum() == scores["n"]
    assert [row["label"] for row in scores["per_class"]] == list(SHAPES)
    assert len(scores["errors"]) == round((1 - scores["accuracy"]) * scores["n"])
    assert scores["against"] is None

    new = tmp_path / "new"
    new.mkdir()
    for number, shape in enumerate(SHAPES):
        draw(shape, 500 + number).save(new / f"{shape}.png")
    rows = headstart_json("predict", fit["out"], new)["predictions"]
    assert [row["label"] for row in rows] == list(SHAPES)
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probability"] == max(row["probabilities"].values())
        assert row["error"] is None

    status, out, _ = headstart("predict", fit["out"], new, "--csv", "--top", "2")
    table = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    assert [row["label"] for row in table][::2] == list(SHAPES)

    classifier = package.load(tmp_path / fit["out"])
    predictions = classifier.predict([new / "cross.png"])
    assert predictions[0].label == "cross"
    assert predictions[0].probability == pytest.approx(rows[1]["probability"], abs=1e-6)


def test_evaluate_and_fit_head_on_cached_rows_import_no_torch(extracted, tmp_path):
    done, loaded = in_own_process("fit-head", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "torchvision", "sklearn", "scipy"}
    done, loaded = in_own_process("evaluate", json.loads(done.stdout)["out"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "torchvision", "sklearn"}


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_trained_heads(extracted, headstart_json, head):
    fit = headstart_json("fit-head", "--head", head, "--epochs", "30")
    assert fit["C"] is None
    assert fit["val"]["accuracy"] > fit["baseline"]["majority"]
    assert headstart_json("evaluate", fit["out"])["accuracy"] == pytest.approx(fit["val"]["accuracy"])


def test_two_models_are_compared_on_the_same_images(extracted, headstart_json):
    first = headstart_json("fit-head")["out"]
    second = headstart_json("fit-head", "--C", "0.0000001", "--out", "models/weak")["out"]
    against = headstart_json("evaluate", first, "--against", second)["against"]
    assert against["model"] == second
    assert 0 <= against["p_value"] <= 1
    assert "chance" in against["verdict"]


def test_the_cache_serves_heads_when_the_images_are_gone(extracted, headstart_json, photos):
    shutil.rmtree(photos)
    fit = headstart_json("fit-head")
    assert headstart_json("evaluate", fit["out"])["n"] == fit["val"]["n"]


def test_python_api(extracted, photos):
    features = package.extract(photos, backbone=BACKBONE)
    assert features.X.shape == (36, 1280)
    assert features.X.dtype == np.float32
    assert features.classes == SHAPES
    assert np.bincount(features.y).tolist() == [12, 12, 12]
    assert set(features.split) == {""}
    assert str(features.paths[0]) == str(photos / "circle" / "00.jpg")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        package.extract(photos, colour="red")


def test_split_folders_and_a_csv_share_the_cache(headstart_json, photos, tmp_path):
    for split, numbers in (("train-shapes", range(8)), ("val-shapes", range(8, 12))):
        for shape in SHAPES:
            (tmp_path / "splits" / split / shape).mkdir(parents=True)
            for number in numbers:
                source = photos / shape / f"{number:02d}.jpg"
                shutil.copy(source, tmp_path / "splits" / split / shape)
    done = headstart_json("extract", tmp_path / "splits", "--backbone", BACKBONE)
    assert done["embedded"] == 36
    fit = headstart_json("fit-head")
    assert (fit["train"]["n"], fit["val"]["n"]) == (24, 12)

    lines = ["path,label,split"]
    lines += [f"photos/{s}/{n:02d}.jpg,{s},{'train' if n < 9 else 'test'}" for s in SHAPES for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    done = headstart_json("extract", tmp_path / "list.csv", "--backbone", BACKBONE)
    assert (done["images"], done["embedded"]) == (36, 0)
    fit = headstart_json("fit-head", "--val-fraction", "0")
    assert (fit["out"], fit["val"]) == (f"models/list-{BACKBONE}-logistic", None)
    status_split = headstart_json("evaluate", fit["out"])
    assert (status_split["split"], status_split["n"]) == ("test", 9)


def test_a_flat_folder_can_be_extracted_but_not_learnt_from(headstart, headstart_json, photos):
    done = headstart_json("extract", photos / "circle", "--backbone", BACKBONE)
    assert done["embedded"] == 12
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "has a label" in err


def test_cache_info_counts(extracted, headstart_json, headstart):
    found = headstart_json("cache", "info")
    assert (found["rows"], len(found["spaces"]), found["temporary"], found["quarantined"]) == (36, 1, 0, 0)
    assert found["spaces"][0]["backbone"] == BACKBONE
    assert found["datasets"][0]["images"] == 36
    status, out, _ = headstart("cache", "info")
    assert status == 0
    assert "36 embeddings" in out


def test_a_damaged_part_is_embedded_again(extracted, headstart, headstart_json, photos, tmp_path):
    parts = list((tmp_path / ".headstart").glob("spaces/*/*.h5"))  # more than one on a slow machine
    for part in parts:
        data = bytearray(part.read_bytes())
        data[-1000] ^= 4
        part.write_bytes(data)
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "is damaged" in err
    assert "run `headstart extract`" in err
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 36
    assert headstart_json("fit-head")["val"] is not None
    assert headstart_json("cache", "info")["quarantined"] == len(parts) > 0


@pytest.mark.parametrize(("name", "low", "high"), [("hymenoptera", 0.93, 0.965), ("hotdog", 0.84, 0.92)])
def test_real_photographs_give_the_accuracy_that_was_measured(headstart_json, samples, name, low, high):
    done = headstart_json("extract", samples / name, "--backbone", BACKBONE)
    assert done["failed"] == 0
    fit = headstart_json("fit-head")
    assert low <= fit["val"]["accuracy"] <= high
    assert fit["val"]["accuracy"] > fit["baseline"]["majority"] + 0.2
