import pytest

from headstart.cache.space import FeatureSpace
from headstart.errors import CacheFormatError, DamagedFileError
from support import make_space


def test_the_id_is_fixed_for_ever(space):
    # A changed id orphans every cache there is: if this fails, the format version must rise.
    assert space.id == "0fa5cf75f4d20bd9"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet50"),
        ("library", "timm"),
        ("weights", "cd" * 32),
        ("layer", "layer4"),
        ("pool", "avg"),
        ("dim", 16),
        ("preprocess", {"resize": 256, "crop": 225, "mean": [0.485, 0.456, 0.406]}),
        ("decoder", 2),
        ("precision", "bfloat16"),
        ("fast_path", "nvjpeg"),
        ("dtype", "float16"),
    ],
)
def test_every_field_makes_another_space(space, field, value):
    assert make_space(**{field: value}).id != space.id


def test_it_survives_json(space):
    assert FeatureSpace.from_dict(space.as_dict()) == space
    assert FeatureSpace.from_dict(make_space(preprocess={"mean": (0.1, 0.2)}).as_dict()).preprocess == {
        "mean": [0.1, 0.2]
    }


def test_a_newer_format_is_refused(space):
    with pytest.raises(CacheFormatError, match="written by format 3, this reads up to 1; upgrade headstart"):
        FeatureSpace.from_dict({**space.as_dict(), "format": 3})


def test_what_is_no_space_is_refused():
    with pytest.raises(DamagedFileError, match="not a feature space"):
        FeatureSpace.from_dict({"format": 1, "backbone": "resnet18"})


def test_spaces_that_differ_only_in_numbers_are_compatible(space):
    assert space.compatible_with(make_space(precision="bfloat16", dtype="float16"))
    assert not space.compatible_with(make_space(layer="layer4"))


def test_differences_name_each_preprocessing_field():
    other = make_space(preprocess={"resize": 256, "crop": 256, "mean": [0.485, 0.456, 0.406]})
    assert make_space().differences(other) == {"crop": (224, 256)}
