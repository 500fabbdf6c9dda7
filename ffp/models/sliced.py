"""One model in memory whose units are sorted once, so that any allocation is a prefix of its weights.

Heads (as KV groups) and FFN channels are permuted, best first, in all matrices that share them; the dense function is
unchanged. Keeping k units is then a view of the first rows or columns: no mask, no copy, no reload, and the forward
gets cheaper with sparsity. Only where the other units make up for removed ones (`refits`) do output projections get
another weight for each width. A linear that stacks several matrices (fused qkv or gate and up) is the exception: its
prefixes are copied together when the allocation changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, Gates
from ffp.models.gates import CurveGate, Fisher, Gate, RefitCurveGate, RefitGate, UnitGate, WeightGradient, watched
from ffp.models.heads import set_heads
from ffp.models.placement import float64
from ffp.models.prunable import PrunableModel, PrunableModule, Segment
from ffp.models.refit import Refit, errors_without_refit

GramOf = Callable[[PrunableModule, torch.Tensor], torch.Tensor]


class SlicedModel:
    """A model of which any number of leading units can be switched on, decision by decision."""

    granularity: ClassVar[str] = "structured"

    def __init__(
        self, prunable: PrunableModel, order: Mapping[str, Sequence[int] | npt.NDArray[np.int64]],
        refits: Mapping[str, Refit] | None = None, gram: GramOf | None = None,
    ):  # fmt: skip
        """Permutes the model's weights in place.

        Args:
            prunable: The dense model.
            order: By decision, its KV groups, heads or channels from the one kept longest to the one removed first.
            refits: By decision, the weights of its output projection that make up for removed units, in that order;
                None for weights that stay as they are.
            gram: Gives E[x x^T] of these columns of a module's output projection, for removal_costs without refits.
        """
        self.refits, self._gram = refits or {}, gram
        self.prunable = prunable
        self.model = prunable.model
        self.keep = tuple(module.decision.n_units for module in prunable.modules)
        self._order = [torch.as_tensor(order[module.decision.name]) for module in prunable.modules]
        self._full: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for module in prunable.modules:
            for segment in module.segments:
                linear = prunable.linear(segment.linear)
                self._full[segment.linear] = (linear.weight.data, None if linear.bias is None else linear.bias.data)
        _permute(prunable, self._order)  # at last, since it undoes what it began

    def set_keep(self, keep: Sequence[int]) -> None:
        """Keeps so many units of each decision, in the order of `prunable.modules`; only changes cost time."""
        before = self.keep
        self._forget()  # where this is interrupted
        for i, module in enumerate(self.prunable.modules):
            if keep[i] != before[i]:
                self._slice(module, self._order[i][: int(keep[i]) * module.decision.bundle])
        self.keep = tuple(int(k) for k in keep)

    def set_allocation(self, allocation: Allocation) -> None:
        """Switches to an allocation of this model's problem."""
        self.set_keep(allocation.keep)

    def restore(self) -> None:
        """Makes the model dense again, its units in their first order; this object cannot be used afterwards.

        Where that is interrupted, it is done all the same before the interrupt goes on.
        """
        try:
            self._restore()
        except KeyboardInterrupt:
            self._restore()
            raise

    def _restore(self) -> None:
        self._set_dense()
        _permute(
            self.prunable, [units.argsort() for units in self._order], [units.sort().values for units in self._order]
        )

    @contextmanager
    def gated(self, keep: Sequence[int], band: float) -> Iterator[list[Gate]]:
        """Puts a gate on the units around each decision's threshold; a backward pass fills the gates' sums.

        The function stays that of `keep`, and the gradients say what a change would do. Blocks are checkpointed, so
        that one block's activations are in memory at a time.

        Args:
            keep: Units that are on (gate 1), by decision.
            band: Width of a band, as a share of the decision's units, in (0, 1]: that many removed units are let in
                with gate 0 (at least one, if any was removed).

        Yields:
            The gates, in the order of `prunable.modules`.
        """
        gates = [self._gate(module, k, band) for module, k in zip(self.prunable.modules, keep, strict=True)]
        self.set_keep([gate.reach for gate in gates])
        try:
            with watched(self.prunable, zip(self._outputs, gates, strict=True)):
                yield gates
        finally:
            if self.refits:  # the gates leave other weights behind
                self._forget()

    def _gate(self, module: PrunableModule, keep: int, band: float) -> Gate:
        refit = self.refits.get(module.decision.name)
        return RefitGate(module, keep, band, refit) if refit else Gate(module, keep, band)

    @contextmanager
    def curve_gates(
        self, keep: Sequence[int], levels: Sequence[npt.NDArray[np.int64]]
    ) -> Iterator[tuple[list[CurveGate], list[Fisher]]]:
        """Puts a gate on every unit; a backward pass fills the gates' sums, and Fisher matrices of the outputs.

        The function stays that of `keep`. Blocks are checkpointed, see gated.

        Args:
            keep: Units that are on (gate 1), by decision.
            levels: By decision, the numbers of kept units that its gate tells about, ascending.

        Yields:
            The gates and the matrices, in the order of `prunable.modules`.

        Raises:
            ConfigError: There are no Gram matrices, see output_fishers.
        """
        self._check_grams()
        of = zip(self.prunable.modules, keep, levels, strict=True)
        gates = [
            RefitCurveGate(module, k, level, refit)
            if (refit := self.refits.get(module.decision.name))
            else CurveGate(module, k, level)
            for module, k, level in of
        ]
        fishers = [Fisher() for _ in gates]
        self._set_dense()
        try:
            with watched(self.prunable, zip(self._outputs * 2, [*gates, *fishers], strict=True)):
                yield gates, fishers
        finally:
            if self.refits:  # the gates leave other weights behind
                self._forget()

    @contextmanager
    def unit_gates(self, factors: Gates) -> Iterator[list[UnitGate]]:
        """Makes the model dense and multiplies every unit by a factor; a backward pass fills the gates' slopes.

        Factors of 1 and 0 give the function of the model cut to the units at 1. No unit makes up for another.

        Args:
            factors: By decision, of its units in the order in which they are kept, (n_units,).

        Yields:
            The gates, in the order of `prunable.modules`.
        """
        self._set_dense()
        gates = [UnitGate(m, torch.as_tensor(f)) for m, f in zip(self.prunable.modules, factors, strict=True)]
        with watched(self.prunable, zip(self._outputs, gates, strict=True)):
            yield gates

    def by_index(self, factors: Gates) -> dict[str, npt.NDArray[np.float32]]:
        """Returns factors on units, as unit_gates takes them, in the model's own order of heads and channels."""
        found = {}
        for module, order, factor in zip(self.prunable.modules, self._order, factors, strict=True):
            name = module.decision.name
            found[name] = np.empty(module.n_indices, dtype=np.float32)
            found[name][order.numpy()] = np.repeat(factor, module.decision.bundle)
        return found

    @contextmanager
    def output_fishers(self) -> Iterator[list[Fisher]]:
        """Makes the model dense; a backward pass fills a Fisher matrix of each output projection.

        Yields:
            The matrices, in the order of `prunable.modules`.

        Raises:
            ConfigError: There are no Gram matrices, so that removal_costs would not know what to do with them.
        """
        self._check_grams()
        self._set_dense()
        fishers = [Fisher() for _ in self.prunable.modules]
        with watched(self.prunable, zip(self._outputs, fishers, strict=True)):
            yield fishers

    def removal_costs(self, fishers: Sequence[Fisher], n_tokens: int) -> list[npt.NDArray[np.float64]]:
        """Returns what each decision's removals cost by a Kronecker-factored expansion of the loss.

        With dW the change of the dense output projection's weight, refitted or not, the mean loss rises by
        tr(S dW E[x x^T] dW^T) / 2, S the Fisher matrix of its outputs.

        Args:
            fishers: From output_fishers or curve_gates, after a backward pass of the summed token losses.
            n_tokens: Tokens in that sum.

        Returns:
            For each decision, nats per token if 0, 1, ... of its units stay: (n_units + 1,).
        """
        found = []
        for module, order, fisher in zip(self.prunable.modules, self._order, fishers, strict=True):
            if refit := self.refits.get(module.decision.name):
                errors = refit.errors(fisher.total)
            else:
                assert self._gram is not None, "output_fishers asks for it"
                weight, _ = self._full[module.output]
                gram = self._gram(module, module.output_columns(order).to(weight.device))
                errors = errors_without_refit(weight, gram, fisher.total)
            by_unit = errors.view(module.decision.n_units, -1).sum(1).cpu().numpy() / (2 * n_tokens)
            found.append(np.append(np.cumsum(by_unit[::-1])[::-1], 0.0))
        return found

    @contextmanager
    def weight_gradients(self) -> Iterator[dict[str, WeightGradient]]:
        """Makes the model dense; a backward pass fills the gradient of every weight that has units.

        Yields:
            The gradients by the linear's path. Together they are as large as these weights in float32.
        """
        self._set_dense()
        gradients = {path: WeightGradient() for path in self._full}
        with watched(self.prunable, gradients.items()):
            yield gradients

    def taylor_scores(self, gradients: Mapping[str, WeightGradient], n_tokens: int) -> list[npt.NDArray[np.float64]]:
        """Returns the sum of |gradient * weight| over the weights of each unit, without biases.

        Args:
            gradients: From weight_gradients, after a backward pass of the summed token losses.
            n_tokens: Tokens in that sum.

        Returns:
            For each decision, nats per token, in the order in which units are kept: (n_units,).
        """
        found = []
        for module in self.prunable.modules:
            scores = torch.zeros(module.decision.n_units, dtype=torch.float64)
            for segment in (segment for segment in module.segments if not segment.fixed):
                weight, gradient = self._full[segment.linear][0], gradients[segment.linear].total
                span = segment.prefix(module.n_indices)
                saliency = (gradient * weight.to(gradient)).abs()
                by_index = saliency[span].sum(1) if segment.axis == 0 else saliency[:, span].sum(0)
                scores += float64(by_index).view(len(scores), -1).sum(1).cpu()
            found.append(scores.numpy() / n_tokens)
        return found

    def _check_grams(self) -> None:
        if not self.refits and self._gram is None:
            raise ConfigError("the calibration holds no Gram matrices, which costs of removals need. Calibrate again.")

    def _forget(self) -> None:
        """Lets the next set_keep give every module its weights anew."""
        self.keep = tuple(-1 for _ in self.keep)

    def _set_dense(self) -> None:
        self.set_keep([module.decision.n_units for module in self.prunable.modules])

    @property
    def _outputs(self) -> list[str]:
        """Paths of the output projections, module by module."""
        return [module.output for module in self.prunable.modules]

    def _slice(self, module: PrunableModule, kept: torch.Tensor) -> None:
        for path, segments in segments_by_linear(module).items():
            weight, bias = self._full[path]
            spans = [segment.prefix(len(kept)) for segment in segments]
            linear = self.prunable.linear(path)
            refit = self.refits.get(module.decision.name)
            if segments[0].axis == 1 and refit and len(kept) < module.n_indices:
                linear.weight.data = refit.weight(spans[0].stop).to(weight)
            elif segments[0].axis == 1:
                linear.weight.data = weight[:, spans[0]]
            else:
                linear.weight.data = _prefix(weight, spans)
                if bias is not None:
                    linear.bias.data = _prefix(bias, spans)
            _set_features(linear)
        set_heads(self.prunable, module, kept)


def cut(prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[Any]]) -> None:
    """Removes all units that are not kept from the weights, in place.

    The model that is left is an ordinary module: what is not kept takes no memory and no time.

    Args:
        prunable: The dense model.
        kept: By decision, the KV groups, heads or channels that stay, ascending.
    """
    for module in prunable.modules:
        cut_module(prunable, module, torch.as_tensor(kept[module.decision.name], dtype=torch.int64))


def cut_module(prunable: PrunableModel, module: PrunableModule, kept: torch.Tensor) -> None:
    """Removes all units of one module but `kept`: KV groups, heads or channels, ascending int64."""
    for path, segments in segments_by_linear(module).items():
        axis = segments[0].axis
        linear = prunable.linear(path)
        index = torch.cat([segment.indices(kept) for segment in segments]).to(linear.weight.device)
        linear.weight = nn.Parameter(linear.weight.data.index_select(axis, index), requires_grad=False)
        if axis == 0 and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data.index_select(0, index), requires_grad=False)
        _set_features(linear)
    set_heads(prunable, module, kept)


def mask(prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[Any]]) -> None:
    """Zeroes all parameters of the units that are not kept, in place: the dense shape, the pruned function."""
    for module in prunable.modules:
        gone = sorted(set(range(module.n_indices)) - set(kept[module.decision.name]))
        units = torch.as_tensor(gone, dtype=torch.int64)
        for segment in (segment for segment in module.segments if not segment.fixed):
            linear = prunable.linear(segment.linear)
            index = segment.indices(units).to(linear.weight.device)
            linear.weight.data.index_fill_(segment.axis, index, 0)
            if segment.axis == 0 and linear.bias is not None:
                linear.bias.data.index_fill_(0, index, 0)


def segments_by_linear(module: PrunableModule) -> dict[str, list[Segment]]:
    """Returns the segments of a module by the path of their linear."""
    found: dict[str, list[Segment]] = defaultdict(list)
    for segment in module.segments:
        found[segment.linear].append(segment)
    return found


def _permute(
    prunable: PrunableModel, orders: Sequence[torch.Tensor], heads: Sequence[torch.Tensor] | None = None
) -> None:
    """Sorts all units in place; back to where they were if that fails or is interrupted.

    Args:
        prunable: The dense model.
        orders: For each module, which unit comes first, second, ...
        heads: For each module, which units these are in the model's own order; `orders` by default.
    """
    begun: list[tuple[torch.Tensor, Segment, torch.Tensor]] = []
    try:
        for module, order in zip(prunable.modules, orders, strict=True):
            for tensor, segment in _tensors(prunable, module):
                last = (len(begun), *_sorted_units(tensor, segment, order))
                begun.append((tensor, segment, order))
                last[1].copy_(last[2])
        for module, units in zip(prunable.modules, heads or orders, strict=True):
            set_heads(prunable, module, units)
    except BaseException:
        if begun and last[0] + 1 == len(begun) and not torch.equal(last[1], last[2]):
            begun.pop()  # its copy did not take place
        for tensor, segment, order in begun:
            there, values = _sorted_units(tensor, segment, order.argsort())
            there.copy_(values)
        for module in prunable.modules:
            set_heads(prunable, module, torch.arange(module.n_indices))
        raise


def _tensors(prunable: PrunableModel, module: PrunableModule) -> Iterator[tuple[torch.Tensor, Segment]]:
    """Weights and biases that hold units of a module, and where."""
    for segment in (segment for segment in module.segments if not segment.fixed):
        linear = prunable.linear(segment.linear)
        yield linear.weight.data, segment
        if segment.axis == 0 and linear.bias is not None:
            yield linear.bias.data, segment


def _sorted_units(tensor: torch.Tensor, segment: Segment, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of a weight or bias that holds a segment, and its rows or columns in an order of the units."""
    index = segment.indices(order).to(tensor.device)
    return tensor.narrow(segment.axis, segment.start, len(index)), tensor.index_select(segment.axis, index)


def _prefix(full: torch.Tensor, spans: list[slice]) -> torch.Tensor:
    return full[spans[0]] if len(spans) == 1 else torch.cat([full[span] for span in spans])


def _set_features(linear: nn.Linear) -> None:
    linear.out_features, linear.in_features = linear.weight.shape
