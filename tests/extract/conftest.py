"""Networks that are loaded once for all tests of this folder."""

from collections.abc import Iterator

import pytest
import torch
from networks import random
from torch import nn

from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep to one thread: where tests share few cores, threads that wait for each other are many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lite() -> Backbone:
    """The network with packaged weights, ending before its classifier."""
    return load_backbone(BackboneRequest("efficientnet_lite0"))


@pytest.fixture(scope="session")
def vision() -> nn.Module:
    """A vision transformer with random weights, without hooks."""
    return random("vit_b_32").release()
