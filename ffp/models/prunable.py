"""A transformers model seen as removable units: loading, the budget of each decision, the rows behind a module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffp.core.errors import ConfigError
from ffp.core.problem import Decision, PruningProblem
from ffp.models.families import Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel



@dataclass(frozen=True)
class Segment:
    """Rows (axis 0) or columns (axis 1) of one linear behind a decision's indices: `width` each, from `start`."""

    linear: str
    axis: int
    start: int
    width: int


@dataclass(frozen=True)
class PrunableModule:
    """One decision in the model: its budget and where its units lie. output: path of the linear they feed."""

    budget: Decision
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
        return self.budget.n_units * self.budget.size












class PrunableModel:
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
        self.modules = tuple(
            module
            for i in range(len(self.blocks))
            for module in (self._attention(i, min_keep), self._ffn(i, min_keep, align))
        )

    def problem(self, target: float, granularity: str = "structured") -> PruningProblem:
        """The problem at a sparsity; ConfigError where the model's linears do not divide into groups of M."""
        if granularity == "structured":
            return PruningProblem(tuple(module.decision for module in self.modules), target)
        sizes: dict[str, int] = {}
        for path, name in self.decisions(granularity).items():
            sizes[name] = sizes.get(name, 0) + self.linear(path).weight.numel()
        if granularity == "unstructured":
            budgets = [Decision(name=name, n_units=n, params_per_unit=1, min_keep=min(self.min_keep, n)) for name, n in sizes.items()]
            return PruningProblem(tuple(budgets), target, granularity)
        m = group_size(granularity)
        self.check_groups(m)
        budgets = [Decision(name=name, n_units=m, params_per_unit=n // m, min_keep=min(self.min_keep, m)) for name, n in sizes.items()]
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
        found = dict.fromkeys((s.linear, u.decision.name) for u in self.modules if u.block == block for s in u.segments)
        return list(found)

    def model_params(self) -> int:
        """Parameters of the whole model as it is now, tied ones counted once."""
        return sum({p.data_ptr(): p.numel() for p in self.model.parameters()}.values())

    def _path(self, block: int, name: str) -> str:
        return f"{self.family.blocks}.{block}.{name}"

    def _attention(self, block: int, min_keep: int) -> PrunableModule:
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

    def _ffn(self, block: int, min_keep: int, align: int) -> PrunableModule:
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

    def _unit(self, block: int, kind: str, n: int, segments: list[Segment], min_keep: int, size: int) -> PrunableModule:
        params_per_unit = 0
        for segment in segments:
            linear = self.linear(segment.linear)
            biased = linear.bias is not None and segment.axis == 0
            across = linear.in_features if segment.axis == 0 else linear.out_features
            params_per_unit += segment.width * (across + biased)
        output = segments[-1].linear
        bias = self.linear(output).bias
        budget = Decision(
            name=f"block{block:02d}.{kind}",
            n_units=n // size,
            params_per_unit=size * params_per_unit,
            fixed_params=0 if bias is None else bias.numel(),
            min_keep=min(-(-min_keep // size), n // size),
            bundle=size,
        )
        return PrunableModule(budget, block, kind, tuple(segments), output)


def group_size(granularity: str) -> int:
    """M of "n-of-M", 0 for the other granularities."""
    return int(granularity.removeprefix("n-of-")) if granularity.startswith("n-of-") else 0


def rows(order: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Indices along the segment's axis of the given units, in the given order: int64, (len(order) * width,)."""
    within = torch.arange(segment.width, device=order.device)
    return (segment.start + order[:, None] * segment.width + within).reshape(-1)
