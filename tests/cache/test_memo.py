from headstart.cache.memo import recall, remember

REQUEST = {"name": "resnet18", "weights": "default"}


def test_it_remembers(tmp_path):
    assert recall(tmp_path, REQUEST) is None
    remember(tmp_path, REQUEST, {"dim": 512, "mean": [0.1]})
    assert recall(tmp_path, REQUEST) == {"dim": 512, "mean": [0.1]}
    assert recall(tmp_path, {**REQUEST, "weights": "none"}) is None


def test_a_changed_byte_is_as_good_as_forgotten(tmp_path):
    remember(tmp_path, REQUEST, {"dim": 512})
    (path,) = (tmp_path / "backbones").iterdir()
    good = path.read_bytes()
    kept = 0
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        kept += recall(tmp_path, REQUEST) not in (None, {"dim": 512})
    assert kept == 0
