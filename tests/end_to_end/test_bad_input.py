import json

import pytest
from command_line import BACKBONE, in_own_process


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["extract", "nowhere"], 1, "nowhere"),
        (["extract"], 1, "data"),
        (["extract", "photos", "--backbone", "resnet81"], 1, "resnet18"),
        (["extract", "photos", "--backbone", "timm/nothing_like_it"], 1, "timm/"),
        (["extract", "photos", "--weights", "missing.pth", "--backbone", BACKBONE], 1, "missing.pth"),
        (["extract", "photos", "--layer", "layer9", "--backbone", BACKBONE], 1, "layer9"),
        (["extract", "photos", "--crop", "0"], 2, "--crop"),
        (["extract", "photos", "--cache", ""], 2, "--cache"),
        (["extract", "photos", "--resize", "tall"], 2, "'tall' is neither a number above 0 nor 'none'"),
        (["extract", "photos", "--mean", "1,2"], 2, "'1,2' is not three numbers"),
        (["extract", "photos", "--colour"], 2, "--colour"),
        (["extract", "photos", "--device", "cuda"], 1, "device cuda is not available here"),
        (["extrakt"], 2, "extrakt"),
        (["fit-head"], 1, "holds no dataset; run `headstart extract DATA` first"),
        (["fit-head", "photos"], 1, "holds nothing of photos; run `headstart extract photos` first"),
        (["fit-head", "--head", "forest"], 2, "forest"),
        (["fit-head", "--C", "-1"], 2, "--C"),
        (["evaluate"], 2, "MODEL"),
        (["evaluate", "photos"], 1, "photos"),
        (["evaluate", "absent"], 1, "absent"),
        (["predict", "photos", "photos"], 1, "photos"),
        (["predict", "photos"], 2, "PATH"),
        (["backbones", "no-such-name"], 1, "no-such-name"),
    ],
)
def test_a_mistake_gets_one_line_and_its_status(headstart, photos, words, status, said):
    got, out, err = headstart(*words)
    assert got == status, err
    assert said in one_line(err)
    assert out == ""


def test_a_group_alone_shows_what_it_has(headstart):
    status, out, err = headstart("cache")
    assert (status, out) == (2, "")
    assert err.startswith("Usage: headstart cache")
    assert "Show what the cache holds" in err


def test_with_json_a_mistake_is_an_object(headstart):
    status, out, err = headstart("extract", "nowhere", "--json")
    assert status == 1
    error = json.loads(out)["error"]
    assert error["type"] == "DataNotFoundError"
    assert "nowhere" in error["message"]
    assert "error:" not in err


def test_an_unexpected_exception_is_one_line_and_debug_shows_the_traceback(headstart, photos, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("headstart.extract.job.list_images", broken)
    status, _, err = headstart("extract", photos)
    assert status == 1
    assert one_line(err).startswith("error: internal error: ZeroDivisionError: of all things; run again with --debug")
    _, _, err = headstart("extract", photos, "--debug")
    assert "Traceback" in err


def test_f48_weights_that_cannot_be_downloaded_are_named_and_nothing_is_cached(photos, tmp_path):
    # In a process of its own: urllib remembers the proxies that it first saw.
    hub, nobody = tmp_path / "hub", "http://127.0.0.1:9"
    environment = {"TORCH_HOME": str(hub), "http_proxy": nobody, "https_proxy": nobody, "no_proxy": ""}
    done, _ = in_own_process("extract", photos, "--backbone", "resnet18", cwd=tmp_path, environment=environment)
    line = one_line(done.stderr)
    assert done.returncode == 1
    folder = hub / "hub" / "checkpoints"
    assert line.startswith(
        f"error: the weights resnet18-f37072fd.pth (SHA-256 f37072fd...) of resnet18 are not in {folder} "
    )
    assert line.endswith(
        "; run `headstart backbones --download resnet18` on a machine with a network and copy the file into that folder,"
        " or give a copy with --weights FILE"
    )
    assert not [path for path in hub.rglob("*") if path.is_file()]
    assert not [path for path in (tmp_path / ".headstart").rglob("*") if path.is_file()]


def test_an_option_without_meaning_for_the_head_is_refused(headstart, headstart_json, photos):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--lr", "0.1")
    assert status == 2
    assert "--lr" in one_line(err)
    assert "logistic" in one_line(err)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensors-*.safetensors", "is damaged: its bytes do not match the SHA-256 in its name; fit the head again"),
        ("model.json", "is damaged: "),
    ],
)
def test_f46_a_truncated_model_is_named_and_fitting_again_mends_it(
    headstart, headstart_json, photos, tmp_path, name, said
):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    out = headstart_json("fit-head")["out"]
    before = headstart_json("evaluate", out)
    (path,) = (tmp_path / out).glob(name)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for words in (["predict", out, photos], ["evaluate", out]):
            status, stdout, err = headstart(*words)
            assert (status, stdout) == (1, "")
            assert one_line(err).startswith(f"error: {path.relative_to(tmp_path)} {said}")
    assert headstart("fit-head", "--overwrite")[0] == 0
    assert headstart_json("evaluate", out) == before
    assert len(list((tmp_path / out).iterdir())) == 2


def test_a_model_is_not_overwritten_by_accident(headstart, headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    out = headstart_json("fit-head")["out"]
    before = (tmp_path / out / "model.json").read_bytes()
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "--overwrite" in one_line(err)
    assert (tmp_path / out / "model.json").read_bytes() == before
    assert headstart("fit-head", "--overwrite")[0] == 0
    status, _, err = headstart("fit-head", "--out", photos, "--overwrite")
    assert status == 1
    assert (photos / "cross" / "00.jpg").exists()
