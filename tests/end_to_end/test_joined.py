"""One head on several feature spaces: what is joined, in which order, and what every command makes of it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import BACKBONE, SHAPES, add_pictures, draw, in_own_process

import headstart as package
from headstart.classify.model import load_model
from headstart.errors import BackboneError, CacheMissError, UsageError
from headstart.extract import reader
from headstart.extract.embedder import Embedder
from headstart.extract.features import load_features
from headstart.extract.gpu_decode import FAST_PATH
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.resolve import embedders_of

RESNET, MOBILENET, LAYER = "resnet18", "mobilenet_v3_small", "features.8"
NAMES = (RESNET, f"{MOBILENET}:{LAYER}")
JOINED = ("--features", NAMES[0], "--features", NAMES[1])
SMALL = {"resize": 64, "crop": 64, "batch_size": 16, "weights": "none"}
EARLY = "_blocks.2"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(folder: Path) -> Path:
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for seed in range(12):
            draw(shape, seed).save(folder / shape / f"{seed:02d}.png")
    return folder


def in_turn(photos: Path, cache: Path) -> None:
    """Extract with two backbones and other seeds, the second run naming the second backbone alone."""
    package.extract(photos, RESNET, cache=cache, **SMALL)
    package.extract(photos, MOBILENET, layer=LAYER, cache=cache, seed=3, **SMALL)


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    in_turn(pictures(folder / "photos"), folder / ".headstart")
    return folder


@pytest.fixture
def here(headstart, once, monkeypatch) -> Path:
    """Work beside a dataset whose cache nobody but readers touches, and return the dataset."""
    monkeypatch.chdir(once)
    return once / "photos"


@pytest.fixture
def own(headstart, tmp_path) -> Path:
    """Work beside a dataset of one's own, extracted as that of `here`."""
    photos = pictures(tmp_path / "photos")
    in_turn(photos, tmp_path / ".headstart")
    return photos


@pytest.fixture
def passes(monkeypatch) -> list[tuple[str, int]]:
    """Backbone and size of the batches of pictures that are embedded from now on."""
    counted, begin = [], Embedder.begin
    monkeypatch.setattr(
        Embedder, "begin", lambda self, pixels: counted.append((self.name, len(pixels))) or begin(self, pixels)
    )
    return counted


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Sizes in bytes of the files that are decoded from now on."""
    counted, decode = [], reader.Reader._decode
    monkeypatch.setattr(
        reader.Reader, "_decode", lambda self, digest, data: counted.append(len(data)) or decode(self, digest, data)
    )
    return counted


def by_hand(photos: Path) -> np.ndarray:
    """Return the rows of the two runs side by side."""
    first = package.extract(photos, RESNET, **SMALL)
    second = package.extract(photos, MOBILENET, layer=LAYER, seed=3, **SMALL)
    assert first.paths.tolist() == second.paths.tolist()
    return np.hstack([first.X, second.X])


def proba_of(predictions) -> np.ndarray:
    return np.array([list(row["probabilities"].values()) for row in predictions])


def test_a_head_on_two_runs_is_one_on_their_rows_side_by_side(own, headstart_json):
    fit = headstart_json("fit-head", *JOINED)
    assert (fit["backbone"], fit["dim"]) == (f"{RESNET}+{MOBILENET}", 512 + 48)
    assert [(one["backbone"], one["layer"], one["pool"], one["dim"]) for one in fit["features"]] == [
        (RESNET, "fc.input", "none", 512), (MOBILENET, LAYER, "avg", 48),
    ]  # fmt: skip
    model = load_model(Path(fit["out"]))
    assert [space["backbone"] for space in model.spaces] == [RESNET, MOBILENET]
    assert [request["seed"] for request in model.training["requests"]] == [0, 3], "each as its own run had it"
    predicted = headstart_json("predict", fit["out"], own)["predictions"]
    np.testing.assert_allclose(proba_of(predicted), model.predict_proba(by_hand(own)), rtol=1e-5)


def test_new_pictures_are_decoded_once_and_embedded_by_the_request_of_each(own, headstart_json, passes, decoded):
    fit = headstart_json("fit-head", *JOINED)
    add_pictures(own, 2)
    new = sorted((own / "circle").glob("*.jpg"))
    predicted = headstart_json("predict", fit["out"], *new, "--batch-size", 16)["predictions"]
    assert sorted(passes) == [(MOBILENET, 2), (RESNET, 2)]
    assert len(decoded) == 2
    rows = [package.extract(own, RESNET, **SMALL).paths.tolist().index(str(path)) for path in new]
    wanted = load_model(Path(fit["out"])).predict_proba(by_hand(own)[rows])
    np.testing.assert_allclose(proba_of(predicted), wanted, rtol=1e-5)


def test_the_names_say_in_which_order_the_columns_stand(here):
    there = load_features(Path(".headstart"), here, features=NAMES)
    back = load_features(Path(".headstart"), here, features=NAMES[::-1])
    assert (there.dims, back.dims) == ((512, 48), (48, 512))
    assert np.array_equal(back.X, np.hstack([there.X[:, 512:], there.X[:, :512]]))
    assert there.X.flags.c_contiguous and there.X.dtype == np.float32


def test_a_person_reads_what_was_joined_and_a_name_says_it(here, headstart):
    status, _, err = headstart("fit-head", *JOINED)
    assert status == 0
    assert f"logistic head on {RESNET}:fc.input (512) + {MOBILENET}:{LAYER} (48), 560 wide: C = " in err
    assert "saved models/photos-resnet18+mobilenet_v3_small-features.8-logistic in " in err


def test_lengths_are_made_equal_in_each_block_by_itself(here):
    fit = package.fit_head(features=NAMES, l2_norm=True, out="equal")
    assert load_model(fit.out).network.preparation.blocks.tolist() == [512, 48]


def test_fitting_and_scoring_from_the_cache_load_no_torch(here):
    fitted, loaded = in_own_process("fit-head", *JOINED, "--json", "--out", "light", cwd=here.parent)
    fit = json.loads(fitted.stdout)
    assert not loaded & {"torch", "torchvision", "PIL"}
    scored, loaded = in_own_process("evaluate", "light", "--json", cwd=here.parent)
    assert not loaded & {"torch", "torchvision", "sklearn"}
    assert json.loads(scored.stdout)["accuracy"] == fit["val"]["accuracy"]


def test_models_with_other_spaces_are_compared_on_the_same_images(here, headstart_json):
    headstart_json("fit-head", *JOINED, "--out", "both")
    headstart_json("fit-head", "--backbone", RESNET, "--out", "one")
    there = headstart_json("evaluate", "both", "--against", "one")
    back = headstart_json("evaluate", "one", "--against", "both")
    assert (there["accuracy"], there["against"]["accuracy"]) == (back["against"]["accuracy"], back["accuracy"])
    assert there["against"]["only_first"] == back["against"]["only_second"]


def test_other_data_is_embedded_in_all_spaces(own, headstart_json, tmp_path, passes):
    headstart_json("fit-head", *JOINED, "--out", "both")
    for seed, split in enumerate(("train", "val"), 50):
        for shape in SHAPES:
            (tmp_path / "more" / split / shape).mkdir(parents=True)
            draw(shape, seed).save(tmp_path / "more" / split / shape / "a.png")
    passes.clear()
    done = headstart_json("evaluate", "both", tmp_path / "more", "--batch-size", 16)
    assert done["n"] == 3 and sorted(passes) == [(MOBILENET, 6), (RESNET, 6)]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--features", RESNET, "--backbone", RESNET), 2, "leave --backbone and --layer out"),
        (("--features", RESNET, "--layer", "fc.input"), 2, "leave --backbone and --layer out"),
        (("--features", RESNET, "--features", f"{RESNET}:fc.input"), 2, f"{RESNET} and {RESNET}:fc.input are the same"),
        (("--features", MOBILENET, "--features", RESNET, "--features", MOBILENET), 2, "name each once"),
        (("--features", ":layer3"), 2, "takes BACKBONE or BACKBONE:LAYER, and got ':layer3'"),
        (("--features", f"{RESNET}:"), 2, f"takes BACKBONE or BACKBONE:LAYER, and got '{RESNET}:'"),
        (("--features", ""), 2, "takes BACKBONE or BACKBONE:LAYER, and got ''"),
        (("--features", RESNET, "--features", "vgg16"), 1, "was not extracted with backbone vgg16"),
        (("--features", f"{RESNET}:layer3"), 1, "--backbone resnet18 --layer layer3`"),
        (("--features", RESNET, "--resize", 32), 1, "was not extracted with backbone resnet18, resize 32"),
        (("--features", RESNET, "--store-dtype", "float16"), 1, "--backbone resnet18 --store-dtype float16`"),
    ],
)
def test_words_that_name_nothing_or_too_much_are_one_line(here, headstart, words, status, said):
    got, out, err = headstart("fit-head", *words, "--out", "none")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (got, out) == (status, "") and said in line
    assert not Path("none").exists()


def test_space_options_narrow_all_features(own, headstart_json):
    package.extract(own, [RESNET, MOBILENET], **{**SMALL, "resize": 32, "crop": 32})
    fit = headstart_json("fit-head", "--features", RESNET, "--features", MOBILENET, "--resize", 64, "--out", "a")
    assert fit["dim"] == 512 + 48, "the latest run with that size had features.8 alone"
    fit = headstart_json("fit-head", "--features", RESNET, "--features", MOBILENET, "--out", "b")
    assert fit["dim"] == 512 + 576, "the latest of all"


def test_images_without_a_row_are_counted_and_the_command_that_is_named_adds_them(own, headstart, headstart_json):
    add_pictures(own, 3)
    package.extract(own, MOBILENET, layer=LAYER, seed=3, **SMALL)
    status, _, err = headstart("fit-head", *JOINED)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and f"3 of 39 images of {own} have no embedding of {RESNET}, layer fc.input; run `" in line
    command = line.split("`")[1]
    assert command == f"headstart extract {own} --backbone {RESNET} --weights none --resize 64 --crop 64"
    assert headstart_json(*shlex.split(command)[1:])["embedded"] == 3
    assert headstart_json("fit-head", *JOINED)["dim"] == 560


def test_every_space_that_lacks_rows_is_named(own, headstart):
    add_pictures(own, 3)
    package.extract(own, BACKBONE, resize=64, crop=64, batch_size=16)
    _, _, err = headstart("fit-head", *JOINED)
    commands = err.splitlines()[-1].split("`")[1::2]
    assert len(commands) == 2
    for command in commands:
        assert headstart(*shlex.split(command)[1:])[0] == 0
    assert headstart("fit-head", *JOINED)[0] == 0


def test_a_forgotten_request_is_named_in_full():
    options = SpaceOptions(
        backbone="vgg16", weights="my weights.pt", layer="classifier.3", resize="none", crop=64, mean=(0.5, 0.25, 0.125),
        store_dtype="float16", decoder="either",
    )  # fmt: skip
    words = "--backbone vgg16 --weights 'my weights.pt' --layer classifier.3 --resize none --crop 64"
    assert options.words() == words + " --mean 0.5,0.25,0.125 --store-dtype float16 --decoder gpu"


def test_two_layers_of_one_network_run_once_and_each_is_pooled_in_its_own_way(own, headstart_json, passes):
    package.extract(own, BACKBONE, layer=EARLY, pool="max", resize=64, crop=64, batch_size=16)
    package.extract(own, BACKBONE, resize=64, crop=64, batch_size=16)
    fit = headstart_json("fit-head", "--features", BACKBONE, "--features", f"{BACKBONE}:{EARLY}")
    assert [(one["layer"], one["pool"], one["dim"]) for one in fit["features"]] == [
        ("fc.input", "none", 1280), (EARLY, "max", 24),
    ]  # fmt: skip
    assert fit["backbone"] == BACKBONE and fit["out"] == f"models/photos-{BACKBONE}+{EARLY}-logistic"
    add_pictures(own, 2)
    passes.clear()
    predicted = headstart_json("predict", fit["out"], *sorted((own / "circle").glob("*.jpg")))["predictions"]
    assert passes == [(BACKBONE, 2)]
    late = package.extract(own, BACKBONE, resize=64, crop=64)
    early = package.extract(own, BACKBONE, layer=EARLY, pool="max", resize=64, crop=64)
    new = [row for row, path in enumerate(late.paths) if path.endswith(".jpg")]
    wanted = load_model(Path(fit["out"])).predict_proba(np.hstack([late.X, early.X])[new])
    np.testing.assert_allclose(proba_of(predicted), wanted, rtol=1e-4)


def test_two_layers_of_one_backbone_have_two_default_names(own, headstart_json):
    package.extract(own, BACKBONE, layer=[EARLY, "_blocks.10", "fc.input"], resize=64, crop=64, batch_size=16)
    named = [headstart_json("fit-head", "--layer", layer)["out"] for layer in (EARLY, "_blocks.10", "fc.input")]
    endings = (f"{BACKBONE}-{EARLY}", f"{BACKBONE}-_blocks.10", BACKBONE)
    assert named == [f"models/photos-{ending}-logistic" for ending in endings]
    again = headstart_json("fit-head", "--features", f"{BACKBONE}:{EARLY}", "--features", f"{BACKBONE}:_blocks.10")
    assert again["out"] == f"models/photos-{BACKBONE}-{EARLY}+_blocks.10-logistic"


def test_weights_of_each_backbone_are_checked(own, headstart_json, monkeypatch):
    fit = headstart_json("fit-head", *JOINED)
    path = Path(fit["out"]) / "model.json"
    content = json.loads(path.read_text())
    content["training"]["requests"][1]["seed"] = 4
    path.write_text(json.dumps(content))
    add_pictures(own, 1)
    with pytest.raises(BackboneError, match=f"^the weights of {MOBILENET} are not those that the embeddings were made"):
        package.load(fit["out"]).predict([own / "circle"])


def test_where_a_gpu_may_decode_for_one_space_alone_the_processor_decodes_for_all(here):
    first, second = load_features(Path(".headstart"), here, features=NAMES).spaces
    made = embedders_of([replace(first, fast_path=FAST_PATH), second], [{}, {}], RunOptions())
    assert [(embedder.name, embedder.asked[0].decoder) for embedder in made] == [(MOBILENET, "cpu"), (RESNET, "either")]


def test_networks_differ_by_weights_preprocessing_and_precision_but_not_by_layer_and_pooling(here):
    space = load_features(Path(".headstart"), here, features=RESNET).space
    spaces = [
        space,
        replace(space, layer="layer3", pool="max", dim=256),
        replace(space, preprocess={**space.preprocess, "crop": 32}),
        replace(space, precision="bfloat16"),
        replace(space, dtype="float16"),
        space,
    ]
    requests = [{"weights": "none", "seed": 0}] * 5 + [{"weights": "none", "seed": 1}]
    made = embedders_of(spaces, requests, RunOptions())
    assert [[spaces.index(mine) for mine in embedder.spaces] for embedder in made] == [[0, 1], [2], [3], [4], [0]]


def test_a_name_alone_is_as_good_as_a_list_of_one(here):
    assert package.fit_head(features=RESNET, out="single").data.features.dims == (512,)
    with pytest.raises(UsageError, match="leave --backbone and --layer out"):
        package.fit_head(features=[RESNET], wanted={"backbone": RESNET})


def test_a_file_of_exported_rows_holds_one_space(here, tmp_path):
    with pytest.raises(UsageError, match="a file holds one feature space, and these are 2"):
        load_features(Path(".headstart"), here, features=NAMES).export(tmp_path / "rows.h5")


def test_joined_features_of_another_dataset_are_not_taken(own, headstart_json, tmp_path):
    other = pictures(tmp_path / "other")
    package.extract(other, RESNET, **SMALL)
    with pytest.raises(CacheMissError, match=f"other was not extracted with backbone {MOBILENET}, layer {LAYER}"):
        load_features(Path(".headstart"), other, features=NAMES)
