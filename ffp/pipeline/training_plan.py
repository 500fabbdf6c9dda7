"""What recovery will take, from the sizes of the model alone: memory on the device, and work."""

from __future__ import annotations

from ffp.config import Cell, Experiment, ModelConfig
from ffp.config.recover import RecoverSettings
from ffp.measure.loss import CHUNK_TOKENS
from ffp.models.checkpoint import dtype_of
from ffp.models.prunable import PrunableModel

ADAPTER_BYTES = 4 * 4  # value, gradient and two moments, float32


def training_tokens(settings: RecoverSettings) -> int:
    """Returns what a recovery takes, in tokens of a forward pass; 0 for none.

    A backward takes as many products as a forward: the model's own weights have no gradients.
    """
    passes = 2 + settings.checkpoint + (settings.loss == "kl") if settings.wanted else 0
    return settings.tokens * passes


def recovered_cells(experiment: Experiment, name: str) -> list[Cell]:
    """Returns the cells of a model that are trained after pruning."""
    return [cell for cell in experiment.cells(only=name) if experiment.recover(cell).wanted]


def recovery_memory(prunable: PrunableModel, experiment: Experiment, name: str) -> dict[str, int]:
    """Returns peak bytes of the largest recovery of a model, as `recover`; nothing where the grid has none."""
    config, context = experiment.models[name], experiment.grid.calibration.context
    cells = recovered_cells(experiment, name)
    sizes = [training_memory(prunable, config, experiment.recover(cell), context) for cell in cells]
    return {"recover": max(sizes)} if sizes else {}


def training_memory(prunable: PrunableModel, config: ModelConfig, settings: RecoverSettings, context: int) -> int:
    """Returns peak bytes on the device: weights, the dense model for `loss: kl`, adapters, and activations.

    Pruned models are counted as dense.

    Args:
        prunable: The model's modules, without weights.
        config: How it runs.
        settings: What is trained.
        context: Tokens of a window.
    """
    size, tokens = dtype_of(prunable.model, config).itemsize, max(config.batch_tokens, context)
    width, linears = int(prunable.config.hidden_size), [prunable.linear(path) for path, _ in prunable.linears(0)]
    inputs, outputs = (sum(getattr(one, name) for one in linears) for name in ("in_features", "out_features"))
    weights = size * prunable.model_params() * (2 if settings.loss == "kl" else 1)
    adapters = ADAPTER_BYTES * settings.rank * (inputs + outputs) * len(prunable.blocks)
    block = tokens * (size * (8 * width + 2 * outputs) + 4 * (inputs + settings.rank * len(linears)))
    kept = tokens * width * size * len(prunable.blocks) + block if settings.checkpoint else block * len(prunable.blocks)
    head = 4 * 4 * CHUNK_TOKENS * int(prunable.config.vocab_size)  # float32 logits, and what the loss makes of them
    return int(weights + adapters + kept + head)
