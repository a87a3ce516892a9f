"""Files that change, move or come back: the cache never answers with the embedding of other bytes."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, draw
from networks import save
from PIL import Image

import headstart as package
from headstart.cache.datasets import load_listing
from headstart.cache.listing import RACY_NS
from headstart.cache.part import read_keys
from headstart.extract import job, network
from headstart.extract.backbone import BackboneRequest, load_backbone

SAME = {"rtol": 1e-4, "atol": 1e-5}  # batches of another size move the last bits


@pytest.fixture
def extracted(headstart_json, photos):
    return headstart_json("extract", photos, "--backbone", BACKBONE)


def again(headstart_json, photos, *options):
    """Extract once more; return what was embedded, reused and failed."""
    done = headstart_json("extract", photos, "--backbone", BACKBONE, *options)
    return done["embedded"], done["reused"], done["failed"]


def settled(headstart_json, photos):
    """Extract when every file is old enough to be believed; return the seconds that the run after it spent reading."""
    time.sleep(RACY_NS / 1e9 + 0.1)
    headstart_json("extract", photos, "--backbone", BACKBONE)
    warm = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (warm["embedded"], warm["device"]) == (0, "none")
    return warm["stages"]["read"]


def table(photos):
    """Return path -> embedding of every picture, as the cache has them."""
    features = package.extract(photos, BACKBONE)
    return dict(zip(map(str, features.paths), features.X, strict=True))


def restore_times(path, before):
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_f22_an_edited_orientation_alone_is_embedded_anew_and_upright(headstart_json, photos):
    upright, turned = photos / "circle" / "upright.png", photos / "circle" / "turned.png"
    picture = draw("stripes", 100).crop((0, 0, 60, 96))
    picture.save(upright)
    exif, files = Image.Exif(), []
    for orientation in (1, 6):
        exif[0x0112] = orientation
        picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
        files.append(turned.read_bytes())
    before, after = files
    differ = sum(one != other for one, other in zip(before, after, strict=True))
    assert 1 <= differ <= 5, "the tag and the four bytes of its checksum"

    turned.write_bytes(before)
    assert again(headstart_json, photos) == (38, 0, 0)
    rows = table(photos)
    assert np.abs(rows[str(turned)] - rows[str(upright)]).max() > 0.01, "it lies on its side"
    turned.write_bytes(after)
    assert again(headstart_json, photos) == (1, 37, 0)
    rows = table(photos)
    np.testing.assert_allclose(rows[str(turned)], rows[str(upright)], **SAME)


def test_f29_an_edit_that_restores_size_and_mtime_is_seen(extracted, headstart_json, photos):
    path = photos / "cross" / "05.jpg"
    assert settled(headstart_json, photos) == 0
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"drawn once", b"drawn anew"))
    restore_times(path, before)
    assert again(headstart_json, photos) == (1, 35, 0)


@pytest.mark.parametrize("offset", [10 * 365 * 86400, -10 * 365 * 86400], ids=["future", "past"])
def test_f30_an_mtime_in_the_future_or_moved_back_changes_nothing(extracted, headstart_json, photos, offset):
    before = table(photos)
    now = time.time_ns()
    for path in photos.glob("*/*.jpg"):
        os.utime(path, ns=(now, now + offset * 10**9))
    assert again(headstart_json, photos) == (0, 36, 0)
    after = table(photos)
    assert before.keys() == after.keys()
    for path, row in before.items():
        np.testing.assert_array_equal(after[path], row)
    assert settled(headstart_json, photos) == 0, "the next run is warm: it opens no file"
    # The date itself is never believed: an edit under such a date is seen.
    path = photos / "cross" / "05.jpg"
    dated = path.stat()
    path.write_bytes(path.read_bytes().replace(b"drawn once", b"drawn anew"))
    restore_times(path, dated)
    assert again(headstart_json, photos) == (1, 35, 0)


def test_f32_a_renamed_or_moved_image_is_found_by_its_bytes(extracted, headstart_json, photos, tmp_path):
    before = table(photos)
    (photos / "circle" / "00.jpg").rename(photos / "circle" / "renamed.jpg")
    (photos / "circle" / "deep").mkdir()
    (photos / "circle" / "01.jpg").rename(photos / "circle" / "deep" / "moved.jpg")
    assert again(headstart_json, photos) == (0, 36, 0)
    after = table(photos)
    for old, new in (("00.jpg", "renamed.jpg"), ("01.jpg", "deep/moved.jpg")):
        np.testing.assert_array_equal(after[f"{photos}/circle/{new}"], before[f"{photos}/circle/{old}"])
    paths = load_listing(tmp_path / ".headstart", photos).paths
    assert {b"circle/renamed.jpg", b"circle/deep/moved.jpg"} <= set(paths)
    assert not {b"circle/00.jpg", b"circle/01.jpg"} & set(paths)


def test_f33_the_rows_of_a_deleted_image_are_not_trained_on(extracted, headstart_json, photos):
    first = headstart_json("fit-head", "--out", "models/all")
    assert first["train"]["n"] + first["val"]["n"] == 36
    for shape in ("circle", "cross"):
        (photos / shape / "03.jpg").unlink()
    assert again(headstart_json, photos) == (0, 34, 0)
    second = headstart_json("fit-head", "--out", "models/fewer")
    assert second["train"]["n"] + second["val"]["n"] == 34
    assert len(package.extract(photos, BACKBONE).X) == 34
    # The rows are still there: an image that comes back costs nothing.
    draw("circle", 3).save(photos / "circle" / "03.jpg", quality=92, comment=b"drawn once")
    assert again(headstart_json, photos) == (0, 35, 0)


def test_t7_an_edit_of_the_same_size_and_times_gets_its_own_embedding(headstart_json, photos):
    path = photos / "cross" / "picture.bmp"
    draw("cross", 100).save(path)
    assert again(headstart_json, photos) == (37, 0, 0)
    assert settled(headstart_json, photos) == 0
    before, old = path.stat(), table(photos)
    draw("stripes", 100).save(path)
    restore_times(path, before)
    assert again(headstart_json, photos) == (1, 36, 0)
    draw("stripes", 100).save(photos / "cross" / "twin.png")
    assert again(headstart_json, photos) == (1, 37, 0)
    new = table(photos)
    assert np.abs(new[str(path)] - old[str(path)]).max() > 0.01
    np.testing.assert_allclose(new[str(path)], new[str(photos / "cross" / "twin.png")], **SAME)


def test_t7_a_future_mtime_hides_no_edit(extracted, headstart_json, photos):
    path = photos / "cross" / "05.jpg"
    later = time.time_ns() + 86400 * 10**9
    os.utime(path, ns=(later, later))
    assert again(headstart_json, photos) == (0, 36, 0)
    for old, new in ((b"drawn once", b"drawn anew"), (b"drawn anew", b"drawn last")):
        path.write_bytes(path.read_bytes().replace(old, new))
        os.utime(path, ns=(later, later))
        assert again(headstart_json, photos) == (1, 35, 0)


def test_t7_a_rename_costs_nothing_and_swaps_no_rows(extracted, headstart_json, photos):
    before = table(photos)
    (photos / "circle" / "00.jpg").rename(photos / "circle" / "zz.jpg")
    (photos / "circle" / "01.jpg").rename(photos / "circle" / "00.jpg")  # a name that stood for other bytes
    assert again(headstart_json, photos) == (0, 36, 0)
    after = table(photos)
    np.testing.assert_array_equal(after[f"{photos}/circle/zz.jpg"], before[f"{photos}/circle/00.jpg"])
    np.testing.assert_array_equal(after[f"{photos}/circle/00.jpg"], before[f"{photos}/circle/01.jpg"])


def test_t7_two_pictures_swapped_keep_their_own_embeddings(extracted, headstart_json, photos):
    one, two = photos / "cross" / "01.bmp", photos / "stripes" / "02.bmp"
    for path in (one, two):
        draw(path.parent.name, 100).save(path)
    assert again(headstart_json, photos) == (2, 36, 0)
    assert settled(headstart_json, photos) == 0
    before, times = table(photos), [path.stat() for path in (one, two)]
    spare = photos / "spare"
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    for path, old in zip((one, two), times, strict=True):
        restore_times(path, old)  # and the sizes of two bitmaps are the same
    assert again(headstart_json, photos) == (0, 38, 0)
    after = table(photos)
    np.testing.assert_array_equal(after[str(one)], before[str(two)])
    np.testing.assert_array_equal(after[str(two)], before[str(one)])


def rows_of(cache: Path) -> dict[str, set[bytes]]:
    """Return space id -> digests of its rows."""
    found: dict[str, set[bytes]] = {}
    for part in cache.glob("spaces/*/*.h5"):
        found.setdefault(part.parent.name, set()).update(digest.tobytes() for digest in read_keys(part).digest)
    return found


def test_t7_weights_changed_by_one_ulp_are_another_space_and_the_old_one_still_serves(headstart_json, photos, tmp_path):
    import torch

    state = load_backbone(BackboneRequest(BACKBONE)).release().state_dict()
    file, kept = tmp_path / "weights.safetensors", tmp_path / "kept.safetensors"
    save(state, file)
    shutil.copy2(file, kept)
    options = ("--weights", file)
    first = headstart_json("extract", photos, "--backbone", BACKBONE, *options)
    assert first["embedded"] == 36
    digests = rows_of(tmp_path / ".headstart")[first["space"]]

    value = state["_conv_head.weight"].view(-1)[7]
    nudged = torch.nextafter(value, value + 1)
    assert nudged != value
    state["_conv_head.weight"].view(-1)[7] = nudged
    before = file.stat()
    save(state, file)
    restore_times(file, before)
    second = headstart_json("extract", photos, "--backbone", BACKBONE, *options)
    assert (second["embedded"], second["reused"]) == (36, 0)
    assert second["space"] != first["space"]
    assert rows_of(tmp_path / ".headstart") == {first["space"]: digests, second["space"]: digests}

    shutil.copy2(kept, file)
    third = headstart_json("extract", photos, "--backbone", BACKBONE, *options)
    assert (third["embedded"], third["reused"], third["space"]) == (0, 36, first["space"])


@pytest.fixture
def after_listing(monkeypatch):
    """Do something between the moment when files are listed and the moment when they are read."""

    def arrange(deed):
        listed = job.list_images

        def list_and_then(*arguments, **options):
            found = listed(*arguments, **options)
            monkeypatch.setattr(job, "list_images", listed)
            deed()
            return found

        monkeypatch.setattr(job, "list_images", list_and_then)

    return arrange


def test_a_folder_that_is_swapped_during_a_run_and_put_back_is_read_again(
    headstart_json, photos, tmp_path, after_listing
):
    circles, others = photos / "circle", tmp_path / "others"
    shutil.copytree(photos / "cross", others)
    time.sleep(RACY_NS / 1e9 + 0.1)

    def swap():
        circles.rename(tmp_path / "aside")
        others.rename(circles)

    after_listing(swap)
    headstart_json("extract", photos, "--backbone", BACKBONE)
    circles.rename(others)
    (tmp_path / "aside").rename(circles)
    assert again(headstart_json, photos) == (12, 24, 0)
    rows = package.extract(photos, BACKBONE)
    truth = package.extract(photos, BACKBONE, cache=tmp_path / "truth")
    np.testing.assert_allclose(rows.X, truth.X, **SAME)


def test_pictures_that_were_away_during_a_run_are_read_when_they_are_back(
    headstart_json, photos, tmp_path, after_listing
):
    after_listing(lambda: (photos / "circle").rename(tmp_path / "away"))
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], {row["error"] for row in done["failures"]}) == (24, {"not found"})
    (tmp_path / "away").rename(photos / "circle")
    assert again(headstart_json, photos) == (12, 24, 0)


def test_weights_that_are_replaced_while_they_load_are_not_remembered(headstart_json, photos, tmp_path, monkeypatch):
    state = dict(load_backbone(BackboneRequest(BACKBONE)).release().state_dict())
    one, two = save(state, tmp_path / "one.safetensors"), tmp_path / "two.safetensors"
    save({name: value * 1.5 if "conv" in name else value for name, value in state.items()}, two)
    time.sleep(RACY_NS / 1e9 + 0.1)
    link = tmp_path / "w.safetensors"
    link.symlink_to(one)
    load = network.load_backbone

    def swapped(*arguments, **options):
        link.unlink()
        link.symlink_to(two)
        try:
            return load(*arguments, **options)
        finally:
            link.unlink()
            link.symlink_to(one)

    # The link leads to the first file before and after, and to the second one while the weights are read.
    words = ("extract", photos, "--backbone", BACKBONE, "--weights", link)
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_backbone", swapped)
        during = headstart_json(*words)
    after = headstart_json(*words)
    assert after["space"] != during["space"]
    assert after["embedded"] == 36
