"""What each step will hold on the device, from the sizes of the model alone.

Memory is the sum of the tensors that a step holds at once. What the libraries themselves take (about 0.5 GB on the
host, as much again for CUDA) is not counted. Three steps are bounded from above: `allocate` with gradients, by dense
blocks, although its candidates are pruned; `apply`, by the ridge of a module that next to nothing is removed from,
since an allocation can leave any of them so; `evaluate`, by the logits of a whole batch, which only tasks need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from ffp.allocators.base import Method, Search
from ffp.config import GridConfig, ModelConfig
from ffp.config.grid import reads_grams
from ffp.config.pruning import PruneSettings
from ffp.core.knapsack import LEVELS
from ffp.measure.loss import CHUNK_TOKENS
from ffp.models.checkpoint import dtype_of
from ffp.models.gates import GATE_TOKENS
from ffp.models.prunable import PrunableModel, PrunableModule
from ffp.models.refit import ANCHORS


def takes_gradients(method: Method) -> bool:
    """Returns whether a method, with its parameters, is planned with a backward pass."""
    return isinstance(method, Search) and (method.takes_gradients or reads_grams(method))


def holds_gradients(method: Method) -> bool:
    """Returns whether a method keeps the gradients of all weights of the decisions."""
    return isinstance(method, Search) and method.holds_gradients


def step_memory(
    prunable: PrunableModel, grid: GridConfig | PruneSettings, config: ModelConfig, *, gradients: bool,
    held: bool = False, grams: bool = False, compensated: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Returns peak bytes on the device by step: the weights there, one batch's activations, the step's own tensors.

    Args:
        prunable: The model, without weights or with them.
        grid: What the contexts and numbers of windows are read from.
        config: How the model runs.
        gradients: Whether the search takes gradients.
        held: Whether it keeps those of all weights.
        grams: Whether Gram matrices are collected; they stay in memory where a search or an order reads them.
        compensated: Whether candidates of the search are compensated.
    """
    width, b = int(prunable.config.hidden_size), dtype_of(prunable.model, config).itemsize
    block = b * max(map(_parameters, prunable.blocks))
    away = b * _parameters(prunable.blocks) - block if config.offload else 0  # weights that stay on the host
    modules, calibration, chunk = prunable.modules[:2], grid.calibration, _logits(prunable, CHUNK_TOKENS)

    def tokens(context: int) -> int:
        return max(config.batch_tokens, context)

    def forward(context: int) -> int:
        """Of one batch: embeddings, a block's input, the residual and its norm, and a module's own; or the loss."""
        inside = max(_inside(prunable, module) for module in modules)
        return max(tokens(context) * b * (4 * width + inside), 2 * tokens(context) * b * width + chunk)

    def backward(context: int) -> int:
        """Of one batch: every block's input, and all that one block keeps; or the loss."""
        kept = 7 * width + sum(_inside(prunable, module, backward=True) for module in modules)
        return tokens(context) * b * len(prunable.blocks) * width + max(tokens(context) * b * kept, 2 * chunk)

    cut = b * sum(prunable.linear(path).weight.numel() for path in _entries(modules[0]) | {modules[0].output: 1})
    solved = max(_ridge(prunable, module, tokens(calibration.context), b) for module in modules)
    needs = {
        "calibrate": forward(max(calibration.context, grid.search.context))
        + 8 * tokens(calibration.context) * prunable.linear(modules[1].output).in_features,
        "allocate": (backward if gradients else forward)(grid.search.context),
        "apply": b * width * calibration.windows * calibration.context
        + max(cut + solved, block + forward(calibration.context)),
        "evaluate": max(forward(grid.evaluation.context), _logits(prunable, config.batch_tokens)),
    }
    needs["allocate"] += _weight_gradients(prunable, tokens(grid.search.context)) if held else 0
    if grams:
        pairs, order = gram_bytes(prunable), max(_inverse(prunable, module) for module in modules)
        needs["grams"] = needs["calibrate"] + pairs
        needs["allocate"] += pairs + (_refits(prunable) if compensated else 0) + _curve_gate(prunable, modules)
        needs["allocate"], needs["apply"] = (max(needs[step], pairs + order) for step in ("allocate", "apply"))
    return {step: int(b * prunable.model_params() - away + need) for step, need in needs.items()}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gram_bytes(prunable: PrunableModel) -> int:
    """Returns the bytes of the Gram matrices of all output projections' inputs, in memory and on disk."""
    return sum(4 * prunable.linear(module.output).in_features ** 2 for module in prunable.modules)


def _curve_gate(prunable: PrunableModel, modules: Sequence[PrunableModule]) -> int:
    """Bytes that a gate computes with in its backward pass: columns between levels, and numbers by column, float32."""
    widest = max(prunable.linear(module.output).in_features for module in modules)
    return 4 * widest * (LEVELS + 4 * GATE_TOKENS)


def _weight_gradients(prunable: PrunableModel, tokens: int) -> int:
    """Bytes of the gradients of all weights of the decisions, and of what one product of them needs, in float32."""
    linears = [prunable.linear(path) for path in prunable.decision_names("structured")]
    widest = max(linear.in_features + linear.out_features for linear in linears)
    return 4 * (sum(linear.weight.numel() for linear in linears) + tokens * widest)


def _refits(prunable: PrunableModel) -> int:
    """Bytes of the factors and anchors of all modules; see ffp.models.refit."""
    sizes = [prunable.linear(module.output).weight.shape for module in prunable.modules]
    return sum(4 * (width * width + out * width * (1 + ANCHORS // 2)) for out, width in sizes)


def _inverse(prunable: PrunableModel, module: PrunableModule) -> int:
    """Bytes while the units of a module are ordered or its refit is factorised, in float64."""
    return 4 * 8 * prunable.linear(module.output).in_features ** 2


def _entries(module: PrunableModule) -> Counter[str]:
    """Paths of the linears at a module's entry, each with the number of matrices that it stacks."""
    return Counter(segment.linear for segment in module.segments if segment.linear != module.output)


def _inside(prunable: PrunableModel, module: PrunableModule, *, backward: bool = False) -> int:
    """Numbers per token that a module holds beside hidden states, at most: in a forward, or until its backward."""
    entries, width = _entries(module), prunable.linear(module.output).in_features
    own, stacked = sum(prunable.linear(path).out_features for path in entries), max(entries.values())
    if module.kind == "attention":
        return own if backward else own + 4 * width  # rotary embeddings are applied to queries, then to keys
    return own + (2 * (1 + stacked) if backward else stacked) * width


def _ridge(prunable: PrunableModel, module: PrunableModule, tokens: int, b: int) -> int:
    """Bytes while the ridge of a module adds up its sums, at most: where next to nothing is removed from it."""
    linear = prunable.linear(module.output)
    n, width = linear.in_features, linear.out_features
    sums, entries = 8 * n * (n + width), _entries(module)
    own = sum(prunable.linear(path).out_features for path in entries)
    held = n + (own if module.kind == "attention" or max(entries.values()) > 1 else 0)
    return sums + tokens * (b * (2 * width + held + n) + 4 * (n + width))


def _logits(prunable: PrunableModel, tokens: int) -> int:
    """Bytes of the float32 logits of so many tokens, and of what the loss makes of them."""
    return 3 * 4 * tokens * int(prunable.config.vocab_size)
