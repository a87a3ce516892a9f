"""Pictures that nvImageCodec decodes beside the processor: here on a CPU, which it can do too, for tests."""

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import BACKBONE, draw, headstart, photos
from PIL import Image

from headstart.cache.index import KeyIndex
from headstart.errors import DeviceError
from headstart.extract import gpu_decode
from headstart.extract.decode import DEFAULT_MAX_PIXELS, decode
from headstart.extract.device import Device, visible_gpus
from headstart.extract.gpu_decode import FAST_PATH, GpuDecoder, gpu_decoder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.phash import KnownHashes, phash
from headstart.extract.preprocess import Preprocess, to_input
from headstart.extract.reader import Need, Reader
from headstart.extract.resolve import embedder_of, resolve
from headstart.extract.transfer import Plain
from support import make_space

__all__ = ["headstart", "photos"]  # fixtures
pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed (the extra gpu)")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL, LARGE = Preprocess(resize=64, crop=64), Preprocess(resize=256, crop=224, interpolation="bicubic")
CPU = Device("cpu", "test")


@pytest.fixture
def decoder():
    with GpuDecoder(CPU, DEFAULT_MAX_PIXELS) as found:
        yield found


def jpeg(seed: int = 0, mode: str = "RGB", side: int = 96, **options) -> bytes:
    file = io.BytesIO()
    draw("circle", seed, side).convert(mode).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def real(samples: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(samples.glob("hymenoptera/train/ants/*.jpg"))[:24]]


def test_it_gives_what_the_processor_gives(decoder, samples):
    """To a level or two: its transform and its rounding are its own. Pictures of many sizes come in one batch."""
    for data in real(samples):
        answer = decoder.offer(data, [SMALL, LARGE])
        assert answer is not None
        for preprocess, (pixels, enlarged) in answer.result(60).items():
            wanted, was_enlarged = to_input(decode(data).pixels, preprocess)
            assert pixels.shape == wanted.shape and pixels.dtype == torch.uint8 and enlarged == was_enlarged
            assert np.abs(pixels.numpy().astype(int) - wanted).max() <= 2


def test_pictures_of_one_size_are_resized_together_and_keep_their_order(decoder):
    files = [jpeg(seed, side=96 + 8 * (seed % 3)) for seed in range(40)]
    answers = [decoder.offer(data, [SMALL]) for data in files]
    for data, answer in zip(files, answers, strict=True):
        wanted, _ = to_input(decode(data).pixels, SMALL)
        assert np.abs(answer.result(60)[SMALL][0].numpy().astype(int) - wanted).max() <= 2


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jpeg()[:-400], id="cut short"),
        pytest.param(jpeg()[:-2], id="no end marker"),
        pytest.param(jpeg(mode="L"), id="grey"),
        pytest.param(jpeg(mode="CMYK"), id="CMYK"),
        pytest.param(turned(), id="turned"),
        pytest.param(b"\x89PNG\r\n\x1a\n rest \xff\xd9", id="no JPEG"),
        pytest.param(b"\xff\xd8\xff no header \xff\xd9", id="no header"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_it_cannot_be_trusted_with_stays_with_the_processor(decoder, data):
    assert decoder.offer(data, [SMALL]) is None


def test_large_pictures_stay_with_the_processor():
    with GpuDecoder(CPU, 96 * 96 - 1) as decoder:
        assert decoder.offer(jpeg(), [SMALL]) is None


def test_what_it_cannot_decode_after_all_is_given_back(decoder):
    broken = bytearray(jpeg())
    broken[200:260] = bytes(60)
    answer = decoder.offer(bytes(broken), [SMALL])
    assert answer is None or answer.result(60) is None or answer.result(60)[SMALL][0].shape == (64, 64, 3)
    assert decoder.offer(jpeg(), [SMALL]).result(60) is not None


def test_a_batch_that_fails_is_given_back(decoder, monkeypatch):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_decode, "to_inputs", full)
    assert decoder.offer(jpeg(), [SMALL]).result(60) is None
    monkeypatch.undo()
    assert decoder.offer(jpeg(), [SMALL]).result(60) is not None


def test_it_takes_no_more_than_it_has_room_for(decoder, monkeypatch):
    gate, decoded = threading.Event(), decoder._decoded

    def slow(requests):
        assert gate.wait(60)
        return decoded(requests)

    monkeypatch.setattr(decoder, "_decoded", slow)
    answers = [decoder.offer(jpeg(), [SMALL]) for _ in range(2 * gpu_decode.BATCH + 5)]
    assert [answer is None for answer in answers[-6:]] == [False, True, True, True, True, True]
    gate.set()
    assert all(answer.result(60) is not None for answer in answers if answer is not None)


def test_both_work_at_once_and_each_picture_is_read_once(tmp_path, decoder, monkeypatch):
    names = []
    for seed in range(60):
        data = jpeg(seed) if seed % 3 else jpeg(seed, mode="L")
        names.append(b"%03d.jpg" % seed)
        (tmp_path / os.fsdecode(names[-1])).write_bytes(data)
    need = Need(SMALL, [KeyIndex([])])
    reader = Reader(os.fsencode(tmp_path), [need, Need(LARGE, [KeyIndex([])])], gpu=decoder, workers=2)
    with ThreadPoolExecutor(40) as pool:
        items = list(pool.map(reader.read, range(60), names))
    assert [isinstance(item.inputs[0][0], torch.Tensor) for item in items] == [bool(seed % 3) for seed in range(60)]
    plain = Reader(os.fsencode(tmp_path), [need])
    batch = Plain(CPU).to_device([item.inputs[0][0] for item in items], padding=4)
    assert batch.shape == (64, 64, 64, 3)
    for number, name in enumerate(names):
        wanted = plain.read(number, name)
        assert items[number].digest == wanted.digest
        assert np.abs(batch[number].numpy().astype(int) - wanted.inputs[0][0]).max() <= 2


def test_its_pictures_are_hashed_like_those_of_the_processor(tmp_path, decoder, samples):
    nothing = KnownHashes.of(np.zeros((0, 32), np.uint8), np.zeros(0, np.uint64))
    reader = Reader(os.fsencode(tmp_path), [Need(SMALL, [KeyIndex([])])], gpu=decoder, workers=1, hashes=nothing)
    for data in real(samples):
        (tmp_path / "a.jpg").write_bytes(data)
        item = reader.read(0, b"a.jpg")
        assert isinstance(item.inputs[0][0], torch.Tensor) and item.inputs[0][0].shape == (64, 64, 3)
        assert int(np.bitwise_count(np.uint64(item.phash) ^ phash(decode(data).pixels))) <= 4


# Which spaces it has a part in


def test_its_rows_are_a_space_of_their_own(tmp_path):
    run = RunOptions(device="cpu")
    spaces = [
        resolve([SpaceOptions(backbone=BACKBONE, decoder=decoder)], run, tmp_path).spaces[0]
        for decoder in ("cpu", "gpu")
    ]
    assert [space.fast_path for space in spaces] == ["", FAST_PATH]
    assert spaces[0].id != spaces[1].id and spaces[0].compatible_with(spaces[1])
    assert embedder_of(spaces[1], {}, run).asked[0].decoder == "either"


def test_asked_for_without_a_gpu_it_is_an_error(headstart, photos):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE, "--decoder", "gpu")
    assert status == 1
    assert err.splitlines()[-1] == "error: --decoder gpu needs an NVIDIA GPU, and this runs on cpu; pass --decoder cpu"


def test_rows_of_such_a_space_can_be_made_without_one():
    space = make_space(fast_path=FAST_PATH, preprocess=SMALL.as_dict())
    assert SpaceOptions.for_space(space, {}).decoder == "either"
    assert gpu_decoder("either", CPU, DEFAULT_MAX_PIXELS) is None
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        gpu_decoder("gpu", CPU, DEFAULT_MAX_PIXELS)


# Which GPUs


@pytest.mark.parametrize(
    ("variable", "count", "wanted"),
    [(None, 3, ["0", "1", "2"]), ("", 0, []), ("2,5", 2, ["2", "5"]), ("GPU-ab,GPU-cd", 2, ["GPU-ab", "GPU-cd"])],
)
def test_visible_gpus(monkeypatch, variable, count, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == wanted
