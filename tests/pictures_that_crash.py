"""Pictures that do something to whoever decodes them: crash, hang, leave."""

import io
import os
from pathlib import Path

from command_line import draw

MARK = b"ends its decoder"
# Put before simplejpeg by Python itself, in the run and in the process that tries a suspect: no part of headstart knows.
EVIL_DECODER = """
import ctypes, os, time
import simplejpeg

_decode = simplejpeg.decode_jpeg

def decode_jpeg(data, *arguments, **options):
    if b"ends its decoder" in data:
        {deed}
    return _decode(data, *arguments, **options)

simplejpeg.decode_jpeg = decode_jpeg
"""
CRASH = "ctypes.string_at(0)"  # as in life: the thread that decodes goes no further


def jpeg(comment: bytes = b"", seed: int = 0) -> bytes:
    """Return the bytes of a drawn JPEG."""
    file = io.BytesIO()
    draw("circle", seed, 96).save(file, "JPEG", quality=92, comment=comment)
    return file.getvalue()


def evil(folder: Path, deed: str) -> dict[str, str]:
    """Return the environment in which a marked JPEG does `deed` to whoever decodes it."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(EVIL_DECODER.format(deed=deed))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}
