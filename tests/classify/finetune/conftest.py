"""What the tests of training share: a few drawn pictures, and one thread, which small networks are quickest with."""

from pathlib import Path

import pytest
import torch
from trainings import drawn


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("drawn") / "pictures")


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def said(caplog):
    """What the program says, whether or not a command has taken its messages for itself."""
    import logging

    logger = logging.getLogger("headstart")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield lambda: list(dict.fromkeys(record.getMessage() for record in caplog.records))
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
