"""Options of the Python API: what means nothing is refused before any work, as the command line does it."""

import pytest
from command_line import BACKBONE, headstart, photos

import headstart as package
from headstart.errors import UsageError
from headstart.extract.job import plan_extract

__all__ = ["headstart", "photos"]  # fixtures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store_dtype": "int8"}, "store_dtype must be one of float32, float16; got 'int8'"),
        ({"precision": "x"}, "precision must be one of auto, float32, bfloat16, float16; got 'x'"),
        ({"decoder": "tpu"}, "decoder must be one of cpu, gpu, either; got 'tpu'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, mps; got 'tpu'"),
        ({"compile": "alway"}, "compile must be one of auto, always, never; got 'alway'"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more; got 0"),
        ({"batch_size": "x"}, "batch_size must be a whole number, 1 or more; got 'x'"),
        ({"workers": -1}, "workers must be a whole number, 1 or more; got -1"),
        ({"processes": 0}, "processes must be a whole number, 1 or more; got 0"),
        ({"max_pixels": 0}, "max_pixels must be a whole number, 1 or more; got 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more; got -1"),
        ({"limit": 0}, "limit must be a whole number, 1 or more; got 0"),
        ({"limit": True}, "limit must be a whole number, 1 or more; got True"),
    ],
)
def test_a_value_that_means_nothing(headstart, photos, tmp_path, options, message):
    for command in (package.extract, plan_extract):
        with pytest.raises(UsageError) as caught:
            command(photos, BACKBONE, **options)
        assert str(caught.value) == message
    assert not (tmp_path / ".headstart").exists()


def test_a_decoder_that_is_not_here_is_refused_before_a_network_is_loaded(headstart, photos, tmp_path):
    for words in ((), ("--dry-run",)):
        status, _, err = headstart(
            "extract", photos, "--backbone", BACKBONE, "--decoder", "gpu", "--device", "cpu", *words
        )
        assert status == 1 and "loading" not in err
        assert err.splitlines()[-1].startswith("error: --decoder gpu needs an NVIDIA GPU")
    assert not (tmp_path / ".headstart/spaces").exists()
