import json

import numpy as np
import pytest

from headstart.cache.listing import save_listing
from headstart.cache.memo import recall, remember
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.cache.verify import verify
from support import add_rows, flip, listing_of, make_space, random_rows


@pytest.fixture
def store(tmp_path, space):
    """Two parts, a listing, a backbone request."""
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    save_listing(store.root, listing_of(digest))
    remember(store.root, {"name": "resnet18"}, {"dim": 8})
    return store


def test_a_whole_cache_is_good(store):
    found = verify(store.root)
    assert (found.parts, found.rows, found.bad, found.status) == (2, 20, [], 0)
    assert found.bytes == sum(path.stat().st_size for path in store.root.rglob("*-*.h5"))
    assert found.summary()["max_difference"] is None


def test_an_absent_cache_has_no_parts(tmp_path):
    assert verify(tmp_path / "absent").summary()["parts"] == 0


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_f10_a_flipped_byte_anywhere_in_a_part_is_named_and_set_aside(store, space, where):
    victim = store.parts(space.id)[0]
    flip(victim, int(where * victim.stat().st_size))
    found = verify(store.root)
    ((part, error),) = found.bad
    assert part == str(victim.relative_to(store.root))
    assert "damaged" in error
    assert (found.parts, found.rows, found.status) == (2, 10, 1)
    assert (store.root / "quarantine" / victim.name).exists()
    assert verify(store.root).status == 0


@pytest.mark.parametrize("length", [0, 1, 511, 512, 3000])
def test_f11_a_truncated_part_is_named_and_set_aside(store, space, length):
    victim = store.parts(space.id)[0]
    victim.write_bytes(victim.read_bytes()[:length])
    assert [part for part, _ in verify(store.root).bad] == [str(victim.relative_to(store.root))]
    assert not victim.exists()
    assert verify(store.root).status == 0


def test_every_attribute_is_held_against_its_space(store, space):
    other = make_space(backbone="resnet50")
    store.prepare(other)
    stray = store.space_folder(other.id) / store.parts(space.id)[0].name
    stray.write_bytes(store.parts(space.id)[0].read_bytes())
    ((part, error),) = verify(store.root).bad
    assert part == str(stray.relative_to(store.root))
    assert f"belongs to feature space {space.id}" in error


@pytest.mark.parametrize("harm", ["{", "other", None])
def test_a_lost_description_is_written_again_from_a_part(store, space, harm):
    path = store.space_folder(space.id) / "space.json"
    good = json.loads(path.read_text())["space"]
    if harm is None:
        path.unlink()
    else:
        path.write_text(json.dumps({"space": make_space(dim=9).as_dict()}) if harm == "other" else harm)
    assert store.space(space.id) == space, "a part tells what the space is"
    ((part, error),) = verify(store.root).bad
    assert part.endswith("space.json")
    assert "written again" in error
    assert json.loads(path.read_text())["space"] == good
    assert verify(store.root).status == 0


def test_a_flipped_byte_in_a_listing_or_a_request_is_named(store):
    listing = next(store.root.glob("datasets/*/*.h5"))
    request = next(store.root.glob("backbones/*.json"))
    flip(listing, listing.stat().st_size - 5)  # beyond what a reader of listings uses
    request.write_text(request.read_text().replace('"dim": 8', '"dim": 9'))
    assert recall(store.root, {"name": "resnet18"}) is None
    assert [part.split("/")[0] for part, _ in verify(store.root).bad] == ["datasets", "backbones"]
    assert verify(store.root).status == 0


def test_where_nothing_can_be_set_aside_it_is_still_named(store, space, monkeypatch, caplog):
    victim = store.parts(space.id)[0]
    flip(victim, 100)

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", refuse)
    assert len(verify(store.root).bad) == 1
    assert victim.exists()
    digest, rows = random_rows(20)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[10:])), rows[10:])
    assert "passed over" in caplog.text
    monkeypatch.undo()
    assert verify(store.root).status == 1, "still there"
