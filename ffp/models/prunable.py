"""A transformers model seen as modules that can be pruned: what each one's units are and which weights they own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from ffp.core.blocks import parse_blocks
from ffp.core.errors import ConfigError, check_whole
from ffp.core.problem import AttentionUnits, Decision, PruningProblem
from ffp.core.suggest import did_you_mean
from ffp.models.families import Family, family_of
from ffp.models.modeling_pruned import selected_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Segment:
    """The rows or columns of one linear that belong to a module's units.

    Attributes:
        linear: Path of the linear.
        axis: 0 for rows, 1 for columns.
        start: First row or column.
        width: Rows or columns of one head, KV group or channel; those of the next one follow at once.
        fixed: Whether these rows belong to all of the module's units, and leave with the last one only. Their number
            is the width.
    """

    linear: str
    axis: int
    start: int
    width: int
    fixed: bool = False

    def indices(self, units: torch.Tensor) -> torch.Tensor:
        """Returns the rows or columns of heads, KV groups or channels, (n,) int64, in their order: int64."""
        within = torch.arange(self.width, device=units.device)
        if self.fixed:
            return self.start + (within if len(units) else within[:0])
        return (self.start + units[:, None] * self.width + within).reshape(-1)

    def prefix(self, n: int) -> slice:
        """Returns the rows or columns of the first `n` heads, KV groups or channels."""
        return slice(self.start, self.start + self.width * (1 if self.fixed else n))


@dataclass(frozen=True)
class PrunableModule:
    """Attention or FFN of one block.

    Attributes:
        decision: How many units it has and what they cost.
        block: Number of the block.
        kind: "attention" or "ffn".
        segments: Where its units lie; the last one is the columns of the output linear.
        output: Path of the linear that leads back to the residual stream.
        per_group: Query heads of a KV group, where query heads are removed and KV heads stay; 0 elsewhere.
    """

    decision: Decision
    block: int
    kind: str
    segments: tuple[Segment, ...]
    output: str
    per_group: int = 0

    @property
    def output_width(self) -> int:
        """Columns of the output linear behind a KV group (its query heads times their width), a head or a channel."""
        return self.segments[-1].width

    @property
    def n_indices(self) -> int:
        """KV groups, heads or channels; more than the decision has units where these are bundles."""
        return self.decision.n_units * self.decision.bundle

    def output_columns(self, units: torch.Tensor) -> torch.Tensor:
        """Returns the columns of the output linear behind these KV groups, heads or channels, (n,) int64."""
        return self.segments[-1].indices(units)

    def bundled(self, order: torch.Tensor) -> torch.Tensor:
        """Returns an order of the module's indices, best first, in which each bundle is a unit.

        Channels are bundled as they come. A bundle of query heads has one of each KV group: the first bundle the best
        ones of all groups, the next one the second best.
        """
        if not self.per_group or self.decision.bundle == 1:
            return order
        by_group = [order[order // self.per_group == group] for group in range(self.decision.bundle)]
        return torch.stack(by_group, dim=1).flatten()


class PrunableModel:
    """A transformers model and its modules in forward order: attention and FFN of block 0, of block 1, ..."""

    def __init__(
        self, model: PreTrainedModel, *, min_keep: int = 1, align: int = 1, keep_blocks: str = "",
        attention_units: AttentionUnits = "kv-groups",
    ):  # fmt: skip
        """Reads the sizes of all modules.

        Args:
            model: Its weights may lie on torch's meta device.
            min_keep: Heads, channels or weights that stay in every decision. With 0, whole modules may go; the
                attention of block 0 keeps a unit: quantised caches read the length of the past from there.
            align: FFN channels that are kept or removed together, so that all kept sizes are multiples of it. Which
                channels go together is not fixed: they are bundled in the order of their scores.
            keep_blocks: Blocks that lose nothing, e.g. "0-3,-2:"; see ffp.core.blocks.parse_blocks.
            attention_units: What is removed of an attention: "kv-groups" (a key and value head with its query heads),
                "query-heads" (one query head of every KV group; KV heads stay), or "single-query-heads" (any of them;
                KV heads stay). All are the same in a model without groups.

        Raises:
            ConfigError: The model has no blocks, its family or the kind of attention units is unknown, `min_keep` or
                `align` is no such number, `align` does not divide the channels, or `keep_blocks` are not of this model.
        """
        self.min_keep = check_whole("min_keep", min_keep, 0, "Give the units that every module keeps at least.")
        together = "Give the number of FFN channels that go together; 1 for each by itself."
        self.align = check_whole("align", align, 1, together)
        self.model, self.keep_blocks = model, keep_blocks
        self.config = model.config
        self.family: Family = family_of(model.config.model_type)
        self.blocks: nn.ModuleList = model.get_submodule(self.family.blocks)  # type: ignore[assignment]
        if not len(self.blocks):
            raise ConfigError("this model has no blocks, so that nothing of it can be pruned. Give one that has some.")
        self.heads: int = model.config.num_attention_heads
        self.kv_heads: int = getattr(model.config, "num_key_value_heads", None) or self.heads
        # by the configuration, since an attention that was cut has fewer columns
        self.head_dim: int = getattr(model.config, "head_dim", None) or model.config.hidden_size // self.heads
        self.attention_units = self._attention_units(attention_units)
        self._is_pruned = any(self._is_cut(block) for block in range(len(self.blocks)))
        self._whole = {f"block{block:02d}" for block in parse_blocks(keep_blocks, len(self.blocks))}
        self.modules = tuple(
            module for block in range(len(self.blocks)) for module in (self._attention(block), self._ffn(block))
        )

    def problem(self, target: float, granularity: str = "structured") -> PruningProblem:
        """Returns the allocation problem of this model.

        Args:
            target: Sparsity of the modules' parameters, in [0, 1).
            granularity: "structured", "unstructured", "n-of-4" or "n-of-8".

        Raises:
            ConfigError: The model was pruned before, or its linears do not divide into groups of M weights.
        """
        if self._is_pruned:
            raise ConfigError(
                "this model was pruned by ffp before. Prune its parent, by the whole sparsity that you want."
            )
        if granularity == "structured":
            return PruningProblem(tuple(module.decision for module in self.modules), target)
        weights: Counter[str] = Counter()
        for path, name in self.decision_names(granularity).items():
            weights[name] += self.linear(path).weight.numel()
        m = group_size(granularity)
        if m:
            self.check_groups(m)
        decisions = tuple(
            Decision(
                name=name,
                n_units=m or count,
                params_per_unit=count // m if m else 1,
                min_keep=self._least(name, m or count, self.min_keep),
            )
            for name, count in weights.items()
        )
        return PruningProblem(decisions, target, granularity)

    def check_units(self, problem: PruningProblem, measured: PrunableModel | None = None) -> None:
        """Raises ConfigError where a problem, or the model that was measured, has other units than this model.

        Of single weights, the units are not asked. The least that stays may differ.
        """
        if problem.granularity != "structured":
            return
        own = [module.decision for module in self.modules]
        counts = [[(d.name, d.n_units, d.bundle, d.params_per_unit) for d in each] for each in (own, problem.decisions)]
        if counts[0] != counts[1]:
            raise ConfigError(
                "the problem is of a model with other units (align, attention_units). Use one PrunableModel."
            )
        places = [
            [(module.segments, module.n_indices, module.decision.bundle, module.per_group) for module in each.modules]
            for each in (self, measured or self)
        ]
        if places[0] != places[1]:
            raise ConfigError(
                "the calibration is of a model with other units (align, attention_units). Calibrate the one that is "
                "pruned."
            )

    def decision_names(self, granularity: str) -> dict[str, str]:
        """Returns the name of each block linear's decision by the linear's path, in forward order."""
        found = {}
        for block in range(len(self.blocks)):
            for path, module in self.linears(block):
                name = {"structured": module, "unstructured": f"{module}.{path.rpartition('.')[2]}"}
                found[path] = name.get(granularity, module.partition(".")[0])
        return found

    def check_groups(self, m: int) -> None:
        """Raises ConfigError where a block linear's inputs do not divide into groups of `m`."""
        for path in self.decision_names("unstructured"):
            if (width := self.linear(path).in_features) % m:
                raise ConfigError(
                    f"{path} has {width} inputs, which do not divide into groups of {m}. "
                    "Remove that granularity, or this model."
                )

    def linear(self, path: str) -> nn.Linear:
        """Returns the linear at a full path.

        Raises:
            ConfigError: It is none, or its weights are quantised.
        """
        module = self.model.get_submodule(path)
        if not isinstance(module, nn.Linear) or module.weight.dtype.itemsize < 2:
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise ConfigError(
                f"{path} is a {kind} with other weights than those of a linear layer in at least 16 bits, which ffp "
                "cannot score and cut. Merge adapters into the model, and load it without quantisation."
            )
        return module

    def linears(self, block: int) -> list[tuple[str, str]]:
        """Returns (path, name of the module's decision) of a block's linears, in forward order."""
        modules = (module for module in self.modules if module.block == block)
        return list(dict.fromkeys((s.linear, module.decision.name) for module in modules for s in module.segments))

    def model_params(self) -> int:
        """Returns the parameters of the whole model as it is now, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def describe_units(self) -> str:
        """Returns in words what the units of a block are, e.g. "3 KV groups of 3 query heads, 1536 channels"."""
        attention, ffn = (module.decision for module in self.modules[:2])
        groups = f"{self.kv_heads} KV group{'s' if self.kv_heads > 1 else ''}"
        heads = {
            "kv-groups": f"{groups} of {self.heads // self.kv_heads} query heads",
            "query-heads": f"{attention.n_units} query heads of each of {groups}",
            "single-query-heads": f"{attention.n_units} query heads",
        }[self.attention_units]
        if self.kv_heads == self.heads:
            heads = f"{self.heads} heads"
        if self.is_joint(0):
            heads = "a whole attention"
        bundles = f"{ffn.n_units} x {ffn.bundle}" if ffn.bundle > 1 else str(ffn.n_units)
        return f"{heads}, {bundles} channels"

    def sizes(self, block: int) -> dict[str, int]:
        """Returns the sizes of a block as it is now, by their names in the configuration."""
        family = self.family
        heads = self.linear(self._path(block, family.attention_output)).in_features // self.head_dim
        found = {"num_attention_heads": heads, "head_dim": self.head_dim}
        if hasattr(self.config, "num_key_value_heads"):
            found["num_key_value_heads"] = self._kv_heads_of(block, heads)
        return found | {family.ffn_width: self.linear(self._path(block, family.ffn_output)).in_features}

    def _kv_heads_of(self, block: int, heads: int) -> int:
        """KV heads that the attention of a block computes with now, which has so many query heads."""
        name, roles = next((name, roles) for name, roles in self.family.attention_inputs if roles[-1] != "q")
        linear = self.linear(self._path(block, name))
        given = len(selected_heads(linear) or range(linear.out_features // self.head_dim))
        return heads if roles == ("head",) else (given - heads * ("q" in roles)) // (len(roles) - ("q" in roles))

    def _is_cut(self, block: int) -> bool:
        """Whether a block's sizes are not those of the configuration."""
        found, width = self.sizes(block), self.family.ffn_width
        return found["num_attention_heads"] != self.heads or found[width] != getattr(self.config, width)

    def _least(self, name: str, n_units: int, min_keep: int) -> int:
        """Units of a decision that have to stay: all of them in a block that stays whole."""
        if name == "block00.attention":
            min_keep = max(1, min_keep)
        return n_units if name.partition(".")[0] in self._whole else min(min_keep, n_units)

    def _path(self, block: int, name: str) -> str:
        return f"{self.family.blocks}.{block}.{name}"

    def _attention_units(self, asked: AttentionUnits) -> AttentionUnits:
        """What a unit of attention is."""
        if asked not in (known := get_args(AttentionUnits)):
            raise ConfigError(f"unknown attention_units {asked!r}: {did_you_mean(str(asked), known)}")
        ungrouped = self.kv_heads == self.heads or self.is_joint(0)
        return "kv-groups" if ungrouped else asked

    def _attention(self, block: int) -> PrunableModule:
        family, heads, head_dim, joint = self.family, self.heads, self.head_dim, self.is_joint(block)
        output, by_group = self._path(block, family.attention_output), joint or self.attention_units == "kv-groups"
        groups = 1 if joint else self.kv_heads
        rows = {"q": heads * head_dim, **dict.fromkeys("kv", self.kv_heads * head_dim), "head": 3 * heads * head_dim}
        n, bundle = (groups, 1) if by_group else (heads, groups if self.attention_units == "query-heads" else 1)
        segments = []
        for name, roles in family.attention_inputs:
            start = 0
            for role in roles:
                fixed = not by_group and role in "kv"
                width = rows[role] if fixed else rows[role] // n
                segments.append(Segment(self._path(block, name), 0, start, width, fixed))
                start += rows[role]
        segments.append(Segment(output, 1, 0, rows["q"] // n))
        per_group = 0 if by_group else heads // groups
        return self._module(block, "attention", n, segments, bundle=bundle, per_group=per_group)

    def is_joint(self, block: int) -> bool:
        """Returns whether attention has weights of all heads together, as a norm over them, so that none goes alone."""
        attention: nn.Module = self.blocks[block].get_submodule(self.family.attention)
        linears = {name for name, _ in self.family.attention_inputs} | {self.family.attention_output}
        others = (m for name, m in attention.named_children() if f"{self.family.attention}.{name}" not in linears)
        sizes = (sum(p.numel() for name, p in m.named_parameters() if name.endswith("weight")) for m in others)
        return any(size > self.head_dim for size in sizes)

    def _ffn(self, block: int) -> PrunableModule:
        output = self._path(block, self.family.ffn_output)
        channels = self.linear(output).in_features
        if channels % self.align and not self._is_pruned:  # else `problem` says so
            raise ConfigError(
                f"align {self.align} does not divide the {channels} FFN channels of {output}. Lower align."
            )
        segments = [
            Segment(self._path(block, name), 0, part * channels, 1)
            for name, parts in self.family.ffn_inputs
            for part in range(parts)
        ]
        return self._module(block, "ffn", channels, [*segments, Segment(output, 1, 0, 1)], bundle=self.align)

    def _params(self, segment: Segment) -> int:
        """Parameters of a segment's rows or columns of one unit, or of its fixed rows."""
        linear = self.linear(segment.linear)
        biased = linear.bias is not None and segment.axis == 0
        across = linear.in_features if segment.axis == 0 else linear.out_features
        return int(segment.width * (across + biased))

    def params_without(self, keep: Sequence[int]) -> int:
        """Returns the parameters of the dense model that leave with all but `keep` units of each decision.

        With an attention's last query head go its KV heads, which belong to none of them.
        """
        gone = 0
        for module, kept in zip(self.modules, keep, strict=True):
            gone += (module.decision.n_units - int(kept)) * module.decision.params_per_unit
            gone += 0 if kept else sum(self._params(segment) for segment in module.segments if segment.fixed)
        return gone

    def _module(
        self, block: int, kind: str, n: int, segments: list[Segment], *, bundle: int, per_group: int = 0
    ) -> PrunableModule:
        """Counts the parameters behind one of `n` heads, KV groups or channels."""
        params = sum(self._params(segment) for segment in segments if not segment.fixed)
        fixed = sum(self._params(segment) for segment in segments if segment.fixed)
        output = segments[-1].linear
        bias = self.linear(output).bias
        name = f"block{block:02d}.{kind}"
        decision = Decision(
            name=name,
            n_units=n // bundle,
            params_per_unit=bundle * params,
            fixed_params=fixed + (0 if bias is None else bias.numel()),
            min_keep=self._least(name, n // bundle, -(-self.min_keep // bundle)),
            bundle=bundle,
        )
        return PrunableModule(decision, block, kind, tuple(segments), output, per_group)


def group_size(granularity: str) -> int:
    """Returns M of "n-of-M", 0 for the other granularities."""
    return int(granularity.removeprefix("n-of-")) if granularity.startswith("n-of-") else 0
