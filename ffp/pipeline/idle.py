"""Settings of a grid that change nothing there. `ffp prune` refuses such; a grid may share them with others."""

from __future__ import annotations

from collections.abc import Iterator

from ffp.config import Experiment
from ffp.config.reading import Strict
from ffp.config.recover import GridRecoverSettings


def idle_settings(experiment: Experiment) -> Iterator[str]:
    """Yields a sentence for each setting that is given in a grid and has no effect."""
    yield from _variants(experiment)
    yield from _sparsities(experiment)
    yield from _of_units(experiment)
    yield from _pruner(experiment)
    yield from _recovery(experiment)
    yield from _of_tasks(experiment)


def _variants(experiment: Experiment) -> Iterator[str]:
    """Variants that no cell has: nothing but `methods` refers to variants."""
    for name in experiment.grid.variants:
        if name not in experiment.grid.methods:
            yield f"variants.{name} is not listed under methods, and never runs. Add it there, or drop it."


def _sparsities(experiment: Experiment) -> Iterator[str]:
    """Granularities that have sparsities of their own and no cell."""
    for name in experiment.grid.own_sparsities:
        if name not in experiment.grid.granularities:
            yield f"own_sparsities.{name} has no effect: {name} is not among granularities."


def _of_units(experiment: Experiment) -> Iterator[str]:
    """The score by which units are removed, and compensated searches."""
    grid, methods = experiment.grid, _methods(experiment, structured=True)
    if _is_given(grid.calibration, "score"):
        if not methods:
            yield "calibration.score has no effect: no cell removes units. Add structured to granularities."
        elif all(name in grid.variants and grid.variants[name].score for name in methods):
            yield "calibration.score has no effect: all methods that remove units have a score of their own."
    if grid.search.compensated and not any(map(experiment.compensated_search, methods)):
        yield (
            "search.compensated has no effect: no search of the grid scores compensated candidates. Give a variant of "
            "one that can compensate: ridge or ridge-dense, or leave it out."
        )


def _pruner(experiment: Experiment) -> Iterator[str]:
    grid, methods = experiment.grid, _methods(experiment, structured=False)
    if not _is_given(grid, "pruner"):
        return
    if not methods:
        yield "pruner has no effect: no cell removes single weights. Add unstructured to granularities."
    elif all(name in grid.variants and grid.variants[name].pruner for name in methods):
        yield "pruner has no effect: all methods that remove single weights have a pruner of their own."


def _recovery(experiment: Experiment) -> Iterator[str]:
    grid, methods = experiment.grid, _methods(experiment, structured=True)
    if not grid.recover.wanted:
        for name in GridRecoverSettings.model_fields:
            if name != "method" and _is_given(grid.recover, name):
                yield f"recover.{name} has no effect: recover.method is none."
    elif not methods:
        yield "recover has no effect: no cell removes units, and others are not trained. Leave it out."
    elif not grid.recover.dense and all(name in grid.variants and grid.variants[name].recover for name in methods):
        yield "recover has no effect: all methods that remove units have a recover of their own."


def _of_tasks(experiment: Experiment) -> Iterator[str]:
    """How tasks are asked, where there are none, or where they are asked otherwise."""
    asked = experiment.grid.evaluation
    given = [name for name in asked.of_tasks() if _is_given(asked, name)]
    if experiment.tasks is None:
        yield from (f"evaluation.{name} has no effect: the grid scores no tasks. Add tasks." for name in given)
        return
    if "seed" in given and not asked.documents:
        yield "evaluation.seed has no effect: all documents are scored. Give evaluation.documents."
    if "fewshot_as_multiturn" in given and not asked.chat_template:
        yield "evaluation.fewshot_as_multiturn has no effect: chat_template is false."


def _methods(experiment: Experiment, *, structured: bool) -> list[str]:
    """The methods of the grid that have cells of units, or of single weights."""
    wanted = [name for name in experiment.grid.granularities if (name == "structured") == structured]
    return [m for m in experiment.grid.methods if any(experiment.refusal(m, name) is None for name in wanted)]


def _is_given(section: Strict, name: str) -> bool:
    """Whether a key of a section has another value than its default."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
