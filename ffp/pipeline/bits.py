"""Adds bits per byte to cells that were scored before there were any: by counting, nothing is forwarded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError
from ffp.measure.perplexity import in_bytes
from ffp.models.checkpoint import load_tokenizer
from ffp.pipeline.inputs import count_test_bytes
from ffp.store.digests import asset_digest
from ffp.store.layout import Layout
from ffp.store.provenance import test_keys
from ffp.store.schemas import Perplexity, ScoresFile

Counter = Callable[[str, Perplexity], int | None]  # of a text's name and its perplexity


def add_bits(experiment: Experiment) -> str:
    """Adds `n_bytes` and `bits_per_byte` to the scores.json of finished cells that lack them.

    The bytes follow from the tokenizer, the text and the windows, which scores.json names; the loss is there already.
    A cell keeps its settings and its provenance, so that it stays valid.

    Returns:
        A line that says how many cells have bits per byte now.

    Raises:
        ArtifactError: A model or text is not fetched, or a cell was scored on another one.
    """
    layout, added, found = Layout.from_grid(experiment.grid), 0, 0
    counters: dict[str, Counter] = {}
    digest_of = functools.cache(asset_digest)
    for cell in experiment.cells():
        path = layout.cell(cell).scores
        scores = ScoresFile.read_if_there(path)
        if scores is None or scores.status != "done":
            continue
        found += 1
        if all(ppl.n_bytes is not None for ppl in scores.perplexities.values()):
            continue
        for key, folder in _inputs(experiment, cell, scores).items():
            if scores.provenance.get(key) != digest_of(folder):
                raise ArtifactError(f"{path} was measured with another {key} than {folder}. Run the grid again.")
        if cell.model not in counters:
            counters[cell.model] = _counter(layout, cell.model)
        completed = _completed(scores, experiment.grid.test_texts[0], counters[cell.model])
        if completed != scores:
            completed.write(path)
            added += 1
    return f"{added} of {found} finished cells have bits per byte now that had none."


def _inputs(experiment: Experiment, cell: Cell, scores: ScoresFile) -> dict[str, Path]:
    """The folders of the model and of the texts that a cell was scored on, by their keys in the provenance."""
    layout, names = Layout.from_grid(experiment.grid), experiment.grid.test_texts
    scored = zip(test_keys(names), names, strict=True)
    texts = {key: layout.text(name).folder for key, name in scored if scores.provenance.get(key) is not None}
    return {"model": layout.model(cell.model).folder, **texts}


def _counter(layout: Layout, model: str) -> Counter:
    """Counts the bytes of a model's windows, of equal ones once."""
    tokenizer = load_tokenizer(layout.model(model).folder)

    @functools.cache
    def count(name: str, context: int, windows: int, bos: str) -> int | None:
        return count_test_bytes(tokenizer, layout.text(name).folder, context, windows, bos=bos)

    return lambda name, ppl: count(name, ppl.context, ppl.n_windows, ppl.bos)


def _completed(scores: ScoresFile, first: str, count: Counter) -> ScoresFile:
    """Returns scores whose perplexities say the bytes; first: name of the first test text."""

    def complete(ppl: Perplexity | None, name: str) -> Perplexity | None:
        n_bytes = None if ppl is None or ppl.n_bytes is not None else count(name, ppl)
        if ppl is None or n_bytes is None:
            return ppl
        loss = sum(ppl.loss_by_window) / len(ppl.loss_by_window)
        return ppl.model_copy(update=in_bytes(loss, ppl.n_tokens, n_bytes))

    main = scores.ppl.text or first
    further = {name: complete(ppl, name) for name, ppl in scores.ppl_further.items()}
    both = {"ppl": complete(scores.ppl, main), "ppl_before": complete(scores.ppl_before, main)}
    return scores.model_copy(update={**both, "ppl_further": further})
