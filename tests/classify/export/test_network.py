"""The head in torch against the head in numpy, for every kind and every preparation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.classify.export.network import _head, whole_network
from headstart.classify.heads import MLPHead
from headstart.classify.knn import KNNHead, NCMHead
from headstart.classify.model import SavedModel, load_model
from headstart.classify.network import Network
from headstart.classify.preparation import Preparation

DIM = 12


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 30)
    return (rng.standard_normal((90, DIM)) + 2 * np.eye(3, DIM)[y]).astype(np.float32), y


def model(network, **changes) -> SavedModel:
    fields = {"kind": "any", "classes": ("a", "b", "c"), "spaces": [], "network": network, "temperature": 1.7}
    return SavedModel(**{**fields, **changes})


def agree(saved: SavedModel, X: np.ndarray) -> bool:
    with torch.no_grad():
        found = _head(saved)(torch.from_numpy(X)).numpy()
    assert found.dtype == np.float32
    return bool(np.allclose(found, saved.predict_proba(X), atol=2e-6))


@pytest.mark.parametrize("options", [{}, {"l2_norm": True}, {"pca": 5}, {"l2_norm": True, "pca": 0.9}], ids=str)
@pytest.mark.parametrize(
    "head",
    [
        lambda **options: NCMHead(**options),
        lambda **options: KNNHead(k=5, **options),
        lambda **options: KNNHead(k=1, metric="euclidean", **options),
        lambda **options: MLPHead(hidden=(8, 6), epochs=20, lr=0.02, weight_decay=0.0, dropout=0.0, **options),
    ],
    ids=["ncm", "knn", "knn euclidean", "mlp"],
)
def test_each_head_says_the_same(head, options):
    X, y = data()
    fitted = head(cv=2, **options).fit(X[::2], y[::2])
    saved = model(fitted.network_)
    assert agree(saved, X)
    assert np.ptp(saved.predict_proba(X)) > 0.1
    other = replace(saved, temperature=saved.temperature / 2)
    assert not np.allclose(other.predict_proba(X), saved.predict_proba(X), atol=1e-3)  # or all would agree


def test_several_blocks_are_divided_by_their_own_lengths():
    rng = np.random.default_rng(1)
    blocks = np.array([5, 7], np.int64)
    preparation = Preparation(np.zeros(DIM, np.float32), np.ones(DIM, np.float32), blocks)
    network = Network(preparation, (rng.standard_normal((3, DIM)).astype(np.float32),), (np.ones(3, np.float32),))
    X = data()[0]
    X[0] = 0  # a row of length 0
    assert agree(model(network), X)
    one = Network(
        Preparation(preparation.mean, preparation.scale, np.array([DIM], np.int64)), network.weights, network.biases
    )
    assert np.abs(model(one).predict_proba(X) - model(network).predict_proba(X)).max() > 1e-3


def test_labels_of_several_have_probabilities_of_their_own():
    X, y = data()
    network = NCMHead(cv=2).fit(X, y).network_
    saved = model(network, multi_label=True, thresholds=[0.5] * 3)
    assert agree(saved, X)
    assert not np.allclose(saved.predict_proba(X).sum(axis=1), 1)


def test_what_lies_behind_the_layer_is_left_out(logistic):
    whole = whole_network(load_model(logistic))
    classifier = [value for name, value in whole.module.named_parameters() if ".fc." in name]
    assert classifier
    assert sum(value.numel() for value in classifier) == 0
    assert 13_000_000 < whole.bytes < 14_000_000  # 3.4 million parameters, without 1.3 million of the classifier
