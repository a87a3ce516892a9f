"""What is trained, and at which rate: parameters grouped by depth, norms and biases without decay."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ...errors import TrainingError, UsageError
from ...extract.depth import Depth
from .options import ALL, HEAD, TrainOptions

if TYPE_CHECKING:
    import torch

    from .modules import TrainableNetwork


def trained_parts(depth: Depth, options: TrainOptions) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the backbone's parameters and modules that are trained.

    Raises
    ------
    BackboneError
        ``--train`` names no layer of the backbone, or one behind the head's beginning.
    TrainingError
        It names one behind which there is nothing to train.
    """
    if options.train == HEAD:
        return frozenset(), frozenset()
    if options.train == ALL:
        return frozenset(depth.parameters), frozenset(["", *depth.modules])
    parameters = depth.parameters_from(options.train)
    if not parameters:
        raise TrainingError(
            f"--train {options.train} trains nothing: neither it nor what lies behind it has parameters; name an "
            "earlier layer, or --train head"
        )
    return parameters, depth.modules_from(options.train)


def freeze(network: TrainableNetwork, trained: Collection[str], options: TrainOptions) -> None:
    """Let the named parameters of the backbone and those of the head have gradients, and no others.

    Raises
    ------
    TrainingError
        None is left to train.
    UsageError
        ``--freeze-norms`` of a network without batch norms.
    """
    from .modules import BATCH_NORMS

    if options.freeze_norms and not any(isinstance(module, BATCH_NORMS) for module in network.body.modules()):
        raise UsageError(
            f"--freeze-norms means nothing to {network.backbone.name}: it has no batch norms; leave it out"
        )
    norms = {
        f"{name}.{key}"
        for name, module in network.body.named_modules()
        if options.freeze_norms and isinstance(module, BATCH_NORMS)
        for key, _ in module.named_parameters(recurse=False)
    }
    for name, value in network.body.named_parameters():
        value.requires_grad_(name in trained and name not in norms)
    for value in network.head.parameters():
        value.requires_grad_(options.head_multiple > 0)
    if not any(value.requires_grad for value in network.parameters()):
        raise TrainingError("nothing is left to train: --head-lr-mult 0 freezes the head too; raise it or --train more")


def parameter_groups(network: TrainableNetwork, depth: Depth, options: TrainOptions) -> list[dict[str, Any]]:
    """Return the groups of an optimizer, each with ``multiple``, its share of the learning rate.

    The head's is `TrainOptions.head_multiple`; that of a block ``layer_decay`` to the power of the number of blocks
    behind it, the last one 1 (Howard and Ruder 2018 call it discriminative fine-tuning). Vectors, which norms' weights
    and all biases are, have no weight decay.
    """
    multiples = {f"head.{name}": options.head_multiple for name, _ in network.head.named_parameters()}
    blocks = depth.blocks()
    for behind, block in enumerate(reversed(blocks)):
        multiples |= {f"body.{name}": options.layer_decay**behind for name in block}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            decay = options.weight_decay if value.ndim > 1 else 0.0
            groups.setdefault((multiples[name], decay), []).append(value)
    return [
        {"params": values, "multiple": multiple, "weight_decay": decay} for (multiple, decay), values in groups.items()
    ]
