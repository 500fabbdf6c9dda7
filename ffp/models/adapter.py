"""A transformers model seen as removable units: loading, the budget of each decision, the rows behind a unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from ffp.config import ModelConfig
from ffp.models.families import Family, family_of
from ffp.models.placement import choose_device, offload
from ffp.types import ArtifactError, ConfigError, LayerBudget, PruningProblem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # never a question in the middle of a job


@dataclass(frozen=True)
class Segment:
    """Rows (axis 0) or columns (axis 1) of one linear behind a decision's indices: `width` each, from `start`."""

    linear: str
    axis: int
    start: int
    width: int


@dataclass(frozen=True)
class Unit:
    """One decision in the model: its budget and where its units lie. output: path of the linear they feed."""

    budget: LayerBudget
    block: int
    kind: str
    segments: tuple[Segment, ...]
    output: str

    @property
    def output_width(self) -> int:
        """Columns of the output linear behind one index: a KV group's query heads times their width, or 1."""
        return self.segments[-1].width

    @property
    def n_indices(self) -> int:
        """KV groups or channels, whatever the size of the budget's units."""
        return self.budget.n_groups * self.budget.size


def load_model(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The dense model from a local folder, safetensors only, in its dtype and placed as its config says, for inference.

    One device; several where the config asks for more than one GPU (accelerate's device map); or, offloaded, all but
    the blocks on the device. Offloaded blocks keep the file's own precision at home.
    """
    from transformers import AutoModelForCausalLM

    if not (Path(folder) / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json. Run `ffp asset model` for it.")
    device, dtype = choose_device(config.device), getattr(torch, config.dtype)
    spread = device.type == "cuda" and config.resources.gpu > 1 and not config.offload
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if config.offload else dtype,
            use_safetensors=True,
            device_map="auto" if spread else None,
            **LOCAL,
        )
    except LOAD_ERRORS as error:
        raise ArtifactError(f"model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if config.offload:
        offload(model, model.get_submodule(family_of(model.config.model_type).blocks), device, dtype)
    elif not spread:
        model = model.to(device)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def load_skeleton(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The model's modules without its weights (on torch's meta device): enough to know the sizes of its units."""
    from transformers import AutoConfig

    if not (Path(folder) / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json. Run `ffp asset model` for it.")
    return _empty(AutoConfig.from_pretrained(folder, **LOCAL))


def skeleton_of(architecture: Mapping[str, Any]) -> PreTrainedModel:
    """The same from the arguments of a transformers configuration, model_type among them."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    family_of(str(architecture.get("model_type")))
    try:
        return _empty(AutoConfig.for_model(**architecture))
    except (StrictDataclassError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"architecture {dict(architecture)} makes no model: {reason}. Correct it.") from error


def _empty(config: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return skeleton


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error


class Adapter:
    """The units of a model, in forward order: attention and FFN of block 0, of block 1, ..."""

    def __init__(self, model: PreTrainedModel, *, min_keep: int = 1, align: int = 1):
        """Read sizes from the modules themselves. Raises ConfigError for an unknown family.

        min_keep: units that stay of every decision. align: FFN channels that are kept or removed together, so that all
        kept sizes are its multiples. Which ones is not fixed: they are bundled in the order of their scores.
        """
        self.model = model
        self.min_keep = min_keep
        self.config = model.config
        self.family: Family = family_of(model.config.model_type)
        self.blocks: nn.ModuleList = model.get_submodule(self.family.blocks)  # type: ignore[assignment]
        self.units = tuple(
            unit
            for i in range(len(self.blocks))
            for unit in (self._attention(i, min_keep), self._ffn(i, min_keep, align))
        )

    def problem(self, target: float, granularity: str = "structured") -> PruningProblem:
        """The problem at a sparsity; ConfigError where the model's linears do not divide into groups of M."""
        if granularity == "structured":
            return PruningProblem(tuple(unit.budget for unit in self.units), target)
        sizes: dict[str, int] = {}
        for path, name in self.decisions(granularity).items():
            sizes[name] = sizes.get(name, 0) + self.linear(path).weight.numel()
        if granularity == "unstructured":
            budgets = [LayerBudget(name, n, 1, min_keep=min(self.min_keep, n)) for name, n in sizes.items()]
            return PruningProblem(tuple(budgets), target, granularity)
        m = group_size(granularity)
        self.check_groups(m)
        budgets = [LayerBudget(name, m, n // m, min_keep=min(self.min_keep, m)) for name, n in sizes.items()]
        return PruningProblem(tuple(budgets), target, granularity)

    def decisions(self, granularity: str) -> dict[str, str]:
        """The decision that each block linear belongs to, by path, in forward order."""
        found = {}
        for block in range(len(self.blocks)):
            for path, module in self.linears(block):
                name = {"structured": module, "unstructured": f"{module}.{path.rpartition('.')[2]}"}
                found[path] = name.get(granularity, module.partition(".")[0])
        return found

    def check_groups(self, m: int) -> None:
        """ConfigError where a block linear's inputs do not divide into groups of m."""
        for path in self.decisions("unstructured"):
            if (width := self.linear(path).in_features) % m:
                raise ConfigError(
                    f"{path} has {width} inputs, which do not divide into groups of {m}. "
                    "Remove that granularity, or this model."
                )

    def linear(self, path: str) -> nn.Linear:
        """The linear at a full path."""
        module = self.model.get_submodule(path)
        assert isinstance(module, nn.Linear), path
        return module

    def linears(self, block: int) -> list[tuple[str, str]]:
        """(path, name of the decision) of a block's linears, in forward order."""
        found = dict.fromkeys((s.linear, u.budget.name) for u in self.units if u.block == block for s in u.segments)
        return list(found)

    def model_params(self) -> int:
        """Parameters of the whole model as it is now, tied ones counted once."""
        return sum({p.data_ptr(): p.numel() for p in self.model.parameters()}.values())

    def _path(self, block: int, name: str) -> str:
        return f"{self.family.blocks}.{block}.{name}"

    def _attention(self, block: int, min_keep: int) -> Unit:
        family, config = self.family, self.config
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        output = self._path(block, family.attention_output)
        head_dim = self.linear(output).in_features // heads
        width = {"q": heads // groups * head_dim, "k": head_dim, "v": head_dim, "head": 3 * head_dim}
        segments = []
        for name, roles in family.attention_inputs:
            start = 0
            for role in roles:
                segments.append(Segment(self._path(block, name), 0, start, width[role]))
                start += groups * width[role]
        segments.append(Segment(output, 1, 0, width["q"]))
        return self._unit(block, "attention", groups, segments, min_keep, 1)

    def _ffn(self, block: int, min_keep: int, align: int) -> Unit:
        output = self._path(block, self.family.ffn_output)
        channels = self.linear(output).in_features
        if channels % align:
            raise ConfigError(
                f"align {align} does not divide the {channels} FFN channels of {output}. Lower it in the model's YAML."
            )
        segments = [
            Segment(self._path(block, name), 0, part * channels, 1)
            for name, parts in self.family.ffn_inputs
            for part in range(parts)
        ]
        return self._unit(block, "ffn", channels, [*segments, Segment(output, 1, 0, 1)], min_keep, align)

    def _unit(self, block: int, kind: str, n: int, segments: list[Segment], min_keep: int, size: int) -> Unit:
        group_params = 0
        for segment in segments:
            linear = self.linear(segment.linear)
            biased = linear.bias is not None and segment.axis == 0
            across = linear.in_features if segment.axis == 0 else linear.out_features
            group_params += segment.width * (across + biased)
        output = segments[-1].linear
        bias = self.linear(output).bias
        budget = LayerBudget(
            f"block{block:02d}.{kind}",
            n // size,
            size * group_params,
            0 if bias is None else bias.numel(),
            min(-(-min_keep // size), n // size),
            size,
        )
        return Unit(budget, block, kind, tuple(segments), output)


def group_size(granularity: str) -> int:
    """M of "n-of-M", 0 for the other granularities."""
    return int(granularity.removeprefix("n-of-")) if granularity.startswith("n-of-") else 0


def rows(order: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Indices along the segment's axis of the given units, in the given order: int64, (len(order) * width,)."""
    within = torch.arange(segment.width, device=order.device)
    return (segment.start + order[:, None] * segment.width + within).reshape(-1)
