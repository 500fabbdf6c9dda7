"""What would fail a run is found before its costly part: checks that a step or a command makes before it starts.

Each takes what it looks at and raises one line with the remedy. That what was measured of the dense model is finite is
checked where it is measured, see ffp.measure.calibration.check_finite.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffp.allocators.base import Method, Search
from ffp.config import GridConfig, ModelConfig
from ffp.core.errors import AssetError, ConfigError
from ffp.core.problem import PruningProblem
from ffp.core.projection import kept_budget
from ffp.pipeline.host import host_memory
from ffp.store.files import folder_behind

log = logging.getLogger("ffp")
PROBE_BYTES = 4096


def check_problem(method: Method, problem: PruningProblem) -> None:
    """Checks that a sparsity can be met, and that a method can meet it.

    Raises:
        BudgetError: min_keep forbids the sparsity.
        ConfigError: The method cannot serve the problem.
    """
    kept_budget(problem)
    method.check(problem)


@dataclass(frozen=True)
class Origin:
    """A search that starts from the policy of another model's cell.

    Attributes:
        method: Of both.
        cell: Path of the cell that starts.
        problem: What it answers.
        origin: Path of the cell that learns the policy.
        learned_on: What that one answers.
    """

    method: Search
    cell: str
    problem: PruningProblem
    origin: str
    learned_on: PruningProblem


def check_origin(found: Origin) -> None:
    """Checks that a policy fits the search that will start from it.

    Raises:
        ConfigError: The two have other decisions.
    """
    own, other = (found.method.policy_sizes(problem) for problem in (found.problem, found.learned_on))
    if own != other:
        what = f"{len(other)} decisions, this one {len(own)}" if len(own) != len(other) else "decisions of other sizes"
        raise ConfigError(
            f"{found.cell} starts from the policy of {found.origin}, which has {what}. Name a model with the same "
            "number of blocks and the same units under init, or leave init out."
        )


def contexts_of(grid: GridConfig) -> dict[str, int]:
    """Returns every context by its key."""
    return {f"{part}.context": getattr(grid, part).context for part in ("calibration", "search", "evaluation")}


def check_context(model_config: Any, contexts: Mapping[str, int]) -> None:
    """Checks that a model has a position for every token of a window.

    Args:
        model_config: A transformers configuration of a known family.
        contexts: Tokens of a window, by the key that sets them.

    Raises:
        ConfigError: A context exceeds `max_position_embeddings`.
    """
    positions = model_config.max_position_embeddings
    for key, context in contexts.items():
        if context > positions:
            raise ConfigError(
                f"{key} = {context} exceeds the {positions} positions that the model knows (max_position_embeddings in "
                f"its config.json). Lower it to {positions} or less."
            )


def check_token_ids(windows: Mapping[str, torch.Tensor], model: Any) -> None:
    """Checks that a model has an embedding for every token.

    Args:
        windows: Token ids, int64, by the name of their text.
        model: A model of transformers.

    Raises:
        AssetError: The tokenizer gives ids that the embedding lacks.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    for name, ids in windows.items():
        if (largest := int(ids.max())) >= vocabulary:
            raise AssetError(
                f"the {name} text has the token id {largest}, but the model's embedding ends at {vocabulary - 1}: its "
                "tokenizer has tokens that the model lacks. Use the tokenizer that the model was trained with."
            )


def check_memory(needed: int, *devices: torch.device) -> None:
    """Checks that a device can hold what will lie on it; logs a warning where others hold too much of it now.

    Args:
        needed: Bytes, all devices together.
        devices: One, or several over which a model is spread. The memory of a CPU, and of MPS, is the machine's,
            as far as its control groups let this process have it.

    Raises:
        ConfigError: They have less memory than that in all.
    """
    found = [torch.cuda.mem_get_info(one) if one.type == "cuda" else host_memory() for one in devices]
    free, total = (sum(column) for column in zip(*found, strict=True))
    what = f"about {needed / 1e9:.1f} GB of memory on {', '.join(map(str, devices))}"
    remedy = "Lower batch_tokens, choose a shorter dtype or (with a GPU) offload: true"
    if needed > total:
        raise ConfigError(
            f"the model's jobs take {what}, which has {total / 1e9:.1f} GB for this process. {remedy}, or a larger "
            "machine."
        )
    if needed > free:
        log.warning("the model's jobs take %s, where %.1f GB are free now. %s.", what, free / 1e9, remedy)


def check_disk(folder: Path, needed: int) -> None:
    """Checks that a folder can be made and filled, by a file without a name in the nearest folder that is there.

    Args:
        folder: What will be written, or be made.
        needed: Bytes of it.

    Raises:
        ConfigError: The place is not writable, or has less space than that.
    """
    parent = next(each for each in folder_behind(folder).parents if each.exists())
    try:
        with tempfile.TemporaryFile(dir=parent) as probe:
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error.strerror}. Free the disk or make the folder writable."
        ) from error
    if needed > free:
        raise ConfigError(
            f"{folder} takes about {needed / 1e6:,.1f} MB, but its disk has {free / 1e6:,.1f} MB free. Free the disk "
            "or name another folder."
        )


def check_not_offloaded(config: ModelConfig, name: str) -> None:
    """Raises ConfigError where a model that is to be trained keeps its weights on the host."""
    if config.offload:
        raise ConfigError(
            f"recovery trains the weights of {name} on the device, which offload keeps on the host. Leave one out."
        )
