"""Images that cannot be used, and odd ones that can: what the command line does with them."""

import ctypes
import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, draw, in_own_process
from PIL import Image, ImageFile

import headstart as package
from headstart.cache.datasets import load_listing

HTML = "<!DOCTYPE html><html><body>404</body></html>"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def reasons(done):
    """Return name -> reason of the failures in what `extract --json` printed."""
    return {Path(row["path"]).name: row["error"] for row in done["failures"]}


def last_line(err):
    assert "Traceback" not in err
    return err.splitlines()[-1]


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def spoil(photos):
    """Add three files that are no images to the class "circle"."""
    (photos / "circle" / "empty.jpg").write_bytes(b"")
    (photos / "circle" / "page.jpg").write_text(HTML)
    whole = (photos / "circle" / "00.jpg").read_bytes()
    (photos / "circle" / "half.jpg").write_bytes(whole[: len(whole) // 2])


def test_f12_some_images_fail_and_the_run_completes(headstart, headstart_json, photos):
    spoil(photos)
    status, out, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert (status, out) == (0, "")
    assert "39 images: 36 embedded, 0 reused, 3 failed in " in err
    assert f"warning: skipped {photos}/circle/empty.jpg: empty file" in err
    assert f"warning: skipped {photos}/circle/half.jpg: truncated" in err

    status, out, err = headstart("extract", photos, "--backbone", BACKBONE, "--strict")
    assert (status, out) == (1, "")
    assert f"warning: skipped {photos}/circle/half.jpg: truncated" in err
    said = f"3 of 39 images failed and --strict was given; the first, {photos}/circle/empty.jpg: empty file"
    assert last_line(err) == f"error: {said}"

    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["images"], again["embedded"], again["reused"], again["failed"]) == (39, 0, 36, 3)
    draw("circle", 100).save(photos / "circle" / "half.jpg")
    mended = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (mended["embedded"], mended["reused"], mended["failed"]) == (1, 36, 2)
    assert headstart_json("fit-head")["train"]["n"] > 0


def test_f13_all_images_fail_and_nothing_is_trained(headstart, headstart_json, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "1.jpg").write_bytes(b"")
    (tmp_path / "bad" / "b" / "2.jpg").write_text(HTML)
    for strict in ([], ["--strict"]):
        status, out, err = headstart("extract", "bad", "--backbone", BACKBONE, *strict)
        assert (status, out) == (1, "")
        assert last_line(err) == "error: 0 of 3 images could be used; the first, bad/a/1.jpg: empty file"
    status, out, err = headstart("fit-head")
    assert (status, out) == (1, "")
    assert last_line(err) == "error: none of the 3 images of bad could be used; the first, a/1.jpg: empty file"
    assert not (tmp_path / "models").exists()
    assert headstart_json("cache", "info")["rows"] == 0


def test_f14_a_cut_image_is_a_failure_and_never_filled_in(headstart_json, photos):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
    for kind in kinds:
        whole = encoded(noise, kind)
        (photos / "circle" / f"half-{kind}.jpg").write_bytes(whole[: len(whole) // 2])
        (photos / "circle" / f"end-{kind}.jpg").write_bytes(whole[:-40])
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], done["failed"]) == (36, 14)
    paths = [f"{photos}/circle/{cut}-{kind}.jpg" for cut in ("half", "end") for kind in kinds]
    assert {row["path"]: row["error"] for row in done["failures"]} == dict.fromkeys(paths, "truncated")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_f15_an_empty_file_and_a_web_page_say_what_they_are(headstart_json, photos):
    spoil(photos)
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert reasons(done) == {
        "empty.jpg": "empty file",
        "page.jpg": "not an image (looks like HTML; failed download?)",
        "half.jpg": "truncated",
    }


def test_f17_a_fifo_hangs_neither_extract_nor_predict(photos, tmp_path):
    os.mkfifo(photos / "cross" / "fifo.jpg")
    (photos / "cross" / "linked.jpg").symlink_to("fifo.jpg")
    rows = [f"photos/{shape}/{n:02d}.jpg,{shape}" for shape in ("circle", "cross") for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "photos/cross/fifo.jpg,cross"]))
    for data, failed in ((photos, 2), ("list.csv", 1)):
        done, _ = in_own_process("extract", data, "--backbone", BACKBONE, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{failed} failed in " in done.stderr
        assert "photos/cross/fifo.jpg: not a regular file" in done.stderr
    done, _ = in_own_process("fit-head", "--out", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done, _ = in_own_process("predict", "model", photos / "cross" / "fifo.jpg", photos / "cross", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cross/fifo.jpg: not read, not a regular file" in done.stdout
    assert len(done.stdout.splitlines()) == 14


def test_f18_an_image_over_the_pixel_limit_is_named_and_the_limit_can_be_raised(headstart_json, photos):
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(photos / "circle" / "large.png")
    done = headstart_json("extract", photos, "--backbone", BACKBONE, "--max-pixels", "50000")
    assert reasons(done) == {"large.png": "60000 pixels exceed the limit of 50000; raise it with --max-pixels"}
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], done["failed"]) == (1, 0)


MEMORY = """
import resource
from headstart.cli import main
status = main(["extract", "photos", *sys.argv[1:]])  # what is warm loads no torch, whose peak would hide the rest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status |= main(["extract", "bombs", *sys.argv[1:]])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another there")
def test_f18_memory_stays_flat_on_a_folder_of_bombs(headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    for number, mode in enumerate(["1", "L", "P", "RGB"]):  # up to 270 MB of pixels each
        Image.new(mode, (9_500, 9_500)).save(bombs / f"{number}.png", compress_level=1)
    shutil.copy(photos / "circle" / "00.jpg", bombs)
    done, _ = in_own_process("--backbone", BACKBONE, cwd=tmp_path, code=MEMORY)
    assert done.returncode == 0, done.stderr
    assert "5 images: 0 embedded, 1 reused, 4 failed" in done.stderr
    assert done.stderr.count("90250000 pixels exceed the limit of 89478485; raise it with --max-pixels") == 4
    grown = int(done.stdout)
    print(f"peak memory grew by {grown} MiB")
    assert grown < 48


def test_f19_pictures_of_every_mode_are_embedded(headstart_json, photos):
    picture = draw("circle", 100)
    clear = picture.convert("RGBA")
    clear.putalpha(picture.convert("L"))
    modes = {"L": picture.convert("L"), "LA": clear.convert("LA"), "RGBA": clear, "1": picture.convert("1")}
    for name, image in modes.items():
        image.save(photos / "circle" / f"{name}.png")
    picture.quantize(16).save(photos / "circle" / "P.png", transparency=3)
    picture.convert("CMYK").save(photos / "circle" / "CMYK.jpg")
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], done["failed"]) == (42, 0)


def test_f20_a_sixteen_bit_image_is_embedded_as_its_eight_bit_twin(headstart_json, photos):
    levels = np.asarray(draw("circle", 100).convert("L"))
    Image.fromarray(levels).save(photos / "circle" / "eight.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(photos / "circle" / "sixteen.png")
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 38
    embedding = embeddings(photos)
    np.testing.assert_allclose(embedding["eight.png"], embedding["sixteen.png"], rtol=1e-4, atol=1e-5)


def embeddings(photos):
    """Return name -> embedding of the pictures in "circle", as the cache has them."""
    features = package.extract(photos, BACKBONE)
    return {Path(path).name: row for path, row in zip(features.paths, features.X, strict=True) if "circle" in path}


def test_f21_an_animation_gives_its_first_frame_and_is_counted(headstart, photos):
    first, second = draw("circle", 100), draw("cross", 100)
    first.save(photos / "circle" / "a.webp", save_all=True, append_images=[second], lossless=True)
    first.save(photos / "circle" / "b.png", save_all=True, append_images=[second])
    first.save(photos / "circle" / "still.png")
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 0
    assert "2 images are animated: the first frame was taken" in err
    embedding = embeddings(photos)
    for name in ("a.webp", "b.png"):
        np.testing.assert_allclose(embedding[name], embedding["still.png"], rtol=1e-4, atol=1e-5)


def test_f23_the_content_decides_and_not_the_suffix(headstart_json, photos):
    right = draw("circle", 100)
    right.save(photos / "circle" / "right.png")
    for kind, suffix in (("PNG", "jpg"), ("TIFF", "gif"), ("BMP", "webp")):
        (photos / "circle" / f"wrong.{suffix}").write_bytes(encoded(right, kind))
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], done["reused"], done["failed"]) == (39, 1, 0), "the PNG's bytes are those of right.png"
    embedding = embeddings(photos)
    for suffix in ("jpg", "gif", "webp"):
        np.testing.assert_allclose(embedding[f"wrong.{suffix}"], embedding["right.png"], rtol=1e-4, atol=1e-5)


def round_trip(headstart, headstart_json, photos, tmp_path, names):
    """Put images and an empty file of such names through listing, training and prediction; return what people saw."""
    folder = os.fsencode(photos / "cross")
    for number, name in enumerate(names):
        draw("cross", 200 + number).save(photos / "new.jpg")
        try:
            (photos / "new.jpg").rename(os.fsdecode(folder + b"/" + name))
        except OSError:
            pytest.skip(f"this file system refuses {name!r}")
        Path(os.fsdecode(folder + b"/bad" + name)).touch()
    status, _, seen = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 0
    assert f"{36 + 2 * len(names)} images: {36 + len(names)} embedded, 0 reused, {len(names)} failed" in seen

    listing = load_listing(tmp_path / ".headstart", photos)
    assert {b"cross/" + name for name in names} <= set(listing.paths)
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert {os.fsencode(row["path"]) for row in done["failures"]} == {folder + b"/bad" + name for name in names}
    model = headstart_json("fit-head")["out"]
    rows = headstart_json("predict", model, photos / "cross")["predictions"]
    assert {os.fsencode(row["path"]) for row in rows if row["error"] is None} >= {folder + b"/" + n for n in names}
    status, out, _ = headstart("predict", model, photos / "cross")
    assert status == 0
    assert len(out.splitlines()) == len(rows), "one line a picture, whatever its name"
    assert all(line.isprintable() for line in [*out.splitlines(), *seen.splitlines()])
    return seen + out


def test_f24_names_with_spaces_newlines_and_dashes_go_in_and_come_out(headstart, headstart_json, photos, tmp_path):
    names = [
        "-leading dash.jpg",
        " space.jpg",
        "new\nline.jpg",
        "ünï ✓.jpg",
        "<img src=x onerror=alert(1)>.jpg",
        "=1.jpg",
    ]
    seen = round_trip(headstart, headstart_json, photos, tmp_path, [os.fsencode(name) for name in names])
    for name in names:
        assert f"{photos}/cross/bad{name}: empty file".replace("\n", r"\n") in seen
        assert f"{photos}/cross/{name}: cross ".replace("\n", r"\n") in seen


def test_f24_a_leading_dash_can_be_named_on_the_command_line(headstart, headstart_json, photos, tmp_path):
    (tmp_path / "-photos").symlink_to(photos)
    status, _, err = headstart("extract", "--backbone", BACKBONE, "--", "-photos")
    assert status == 0, err
    model = headstart_json("fit-head", "--out", "model")["out"]
    draw("cross", 500).save(tmp_path / "-x.png")
    status, out, _ = headstart("predict", model, "--", "-x.png")
    assert (status, out[:13]) == (0, "-x.png: cross")


def test_f25_names_of_any_bytes_go_in_and_come_out(headstart, headstart_json, photos, tmp_path):
    names = [b"\xff\xfe.jpg", b"caf\xe9.jpg", b"\x1b[31m.jpg"]
    seen = round_trip(headstart, headstart_json, photos, tmp_path, names)
    for shown in (r"\xff\xfe.jpg", r"caf\xe9.jpg", r"\x1b[31m.jpg"):
        assert f"{photos}/cross/bad{shown}: empty file" in seen
        assert f"{photos}/cross/{shown}: cross " in seen


def test_f25_a_table_for_programs_has_the_bytes_and_a_message_cannot_steer_a_terminal(headstart_json, photos, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/da\xff\n\x1b[31m")
    (photos / "cross" / "00.jpg").rename(os.fsdecode(os.fsencode(photos) + b"/cross/\xff.jpg"))
    photos.rename(folder)
    done, _ = in_own_process("extract", folder, "--backbone", BACKBONE, cwd=tmp_path)
    fit, _ = in_own_process("fit-head", cwd=tmp_path)
    for text in (done.stderr, fit.stderr):
        assert r"da\xff\n\x1b[31m" in text
        assert "\x1b" not in text
    model = next((tmp_path / "models").iterdir())
    program = "import sys; from headstart.cli import main; sys.exit(main(sys.argv[1:]))"
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    words = [sys.executable, "-c", program, "predict", model, folder, "--csv"]
    table = subprocess.run(words, cwd=tmp_path, env=strict, capture_output=True, check=True).stdout
    assert b"/cross/\xff.jpg" in table


def test_f26_links_that_loop_or_lead_nowhere_are_skipped_and_listed(headstart_json, headstart, photos):
    (photos / "cross" / "loop.jpg").symlink_to("loop.jpg")
    (photos / "cross" / "one.jpg").symlink_to("two.jpg")
    (photos / "cross" / "two.jpg").symlink_to("one.jpg")
    (photos / "cross" / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "cross" / "missing folder").symlink_to("/nowhere/at/all")
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["images"], done["embedded"], done["failed"]) == (40, 36, 4)
    loop = dict.fromkeys(["loop.jpg", "one.jpg", "two.jpg"], "symlink loop")
    assert reasons(done) == {**loop, "gone.jpg": "dangling link"}
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 0
    assert f"warning: skipped {photos}/cross/gone.jpg: dangling link" in err
    assert "note: links that lead nowhere: cross/missing folder (dangling link)" in err


def test_f27_links_are_followed_and_each_real_folder_is_listed_once(headstart, headstart_json, photos, tmp_path):
    outside = tmp_path / "outside"
    (photos / "stripes").rename(outside)
    (photos / "stripes").symlink_to(outside)  # a class that lies elsewhere
    (photos / "circle" / "up").symlink_to(photos)  # a circle of folders
    (photos / "cross" / "again").symlink_to(photos / "cross")
    (photos / "cross" / "linked.jpg").symlink_to(outside / "00.jpg")
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 0
    assert "37 images: 36 embedded, 1 reused, 0 failed" in err
    assert "note: skipped links to folders that are listed already: circle/up, cross/again" in err
    features = package.extract(photos, BACKBONE)
    assert features.classes == ("circle", "cross", "stripes")
    assert np.bincount(features.y).tolist() == [12, 13, 12]


def test_f28_a_folder_named_as_an_image_is_skipped_and_listed(headstart_json, photos):
    (photos / "cross" / "folder.jpg").mkdir()
    (photos / "cross" / "album.jpg").mkdir()
    draw("cross", 100).save(photos / "cross" / "album.jpg" / "inside.jpg")
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["images"], done["embedded"], done["failed"]) == (38, 37, 1)
    assert reasons(done) == {"folder.jpg": "is a directory"}


def obey_permissions():
    """Take from root, in a process that is about to start, the right to read what has no permission bits."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the capability cannot be dropped")


def bound_by_permissions(*words, cwd):
    """Run a command in a process that permission bits bind, also where the tests run as root."""
    before = None if os.geteuid() else obey_permissions
    program = "import sys; from headstart.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *map(str, words)]
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, preexec_fn=before)
    except subprocess.SubprocessError:
        pytest.skip("root may read what has no permission bits, and cannot give that up here")


@pytest.mark.skipif(os.name != "posix", reason="needs permission bits")
def test_f28_what_may_not_be_read_is_skipped_and_listed(photos, tmp_path):
    (photos / "cross" / "00.jpg").chmod(0)
    (photos / "cross" / "secret").mkdir()
    (photos / "cross" / "00.jpg").rename(photos / "cross" / "forbidden.jpg")
    draw("cross", 100).save(photos / "cross" / "secret" / "hidden.jpg")
    (photos / "cross" / "secret").chmod(0)
    try:
        done = bound_by_permissions("extract", photos, "--backbone", BACKBONE, cwd=tmp_path)
    finally:
        (photos / "cross" / "secret").chmod(stat.S_IRWXU)
    assert done.returncode == 0, done.stderr
    assert "37 images: 35 embedded, 0 reused, 2 failed" in done.stderr
    assert f"warning: skipped {photos}/cross/forbidden.jpg: permission denied" in done.stderr
    assert f"warning: skipped {photos}/cross/secret: permission denied" in done.stderr
