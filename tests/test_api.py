"""The API in memory gives what the workflow's steps give, and touches no disk."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import ffp
from ffp import api
from ffp.allocators import create
from ffp.allocators.base import SearchBudget
from ffp.config import Experiment
from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from ffp.store import schemas
from ffp.store.layout import Layout
from tests.helpers.families import tiny


def windows(seed: int = 0) -> api.Windows:
    torch.manual_seed(seed)
    return api.Windows(*(torch.randint(0, 64, (n, 16)) for n in (4, 8, 4)))


CUTS = {
    "structured": make_cut("structured", score="wanda", compensation="ridge", pruner="wanda"),
    "unstructured": make_cut("unstructured", score="wanda", compensation="none", pruner="wanda"),
}
BUDGET = SearchBudget(evaluations=20, windows=2, finalists=2)


@pytest.mark.parametrize("granularity", CUTS)
@pytest.mark.parametrize("method", ["uniform", "owl", "evolutionary"])
def test_the_chain_prunes_a_model_in_memory_without_touching_the_disk(granularity, method, monkeypatch):
    prunable, cut, chosen = PrunableModel(tiny("llama")), CUTS[granularity], create(method, {})
    monkeypatch.setattr(builtins, "open", None)
    monkeypatch.setattr(Path, "open", None)
    calibration = api.calibrate(prunable, windows())
    found = api.allocate(prunable, calibration, chosen, sparsity=0.3, granularity=granularity, cut=cut, budget=BUDGET)
    masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
    summary = api.install(prunable, found.problem, masks, cut)
    assert 0.3 <= summary.block_sparsity < 0.35
    assert api.evaluate(prunable.model, windows(1).search)["value"] > 1


def test_dropout_is_off_in_a_model_that_was_trained():
    """Without a call of eval() by the user; that and gradients come back."""
    kept = []

    def losses(model):
        prunable, method = PrunableModel(model), create("evolutionary", {})
        calibration, cut = api.calibrate(prunable, windows()), CUTS["structured"]
        found = api.allocate(prunable, calibration, method, sparsity=0.3, cut=cut, budget=BUDGET)
        masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
        dense = api.evaluate(model, windows(1).search)["loss_by_window"]
        kept.append((model.training, all(parameter.requires_grad for parameter in model.parameters())))
        api.install(prunable, found.problem, masks, cut)
        return dense, api.evaluate(model, windows(1).search)["loss_by_window"]

    trained = tiny("opt", dropout=0.3).train().requires_grad_(True)
    assert losses(trained) == losses(tiny("opt"))
    assert kept == [(True, True), (False, False)] and trained.training


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 30, float("nan")])
@pytest.mark.parametrize("method", ["uniform", "error-table-dp", "fastforward-guided"])
def test_a_sparsity_that_is_no_share_is_refused(method, sparsity):
    prunable = PrunableModel(tiny("llama"))
    calibration = api.calibrate(prunable, windows())
    with pytest.raises(ConfigError, match=r"in \(0, 1\)" + (". Write 0.3 for 30 %" if sparsity == 30 else "$")):
        api.allocate(prunable, calibration, create(method, {}), sparsity=sparsity, cut=CUTS["structured"])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "units", [{"align": 8}, {"attention_units": "query-heads"}, {"attention_units": "single-query-heads"}]
)
def test_a_calibration_problem_or_cut_of_other_units_is_refused(units):
    """What is measured of one PrunableModel says nothing of the units of another one of the same model."""
    model, cut, method = tiny("llama"), CUTS["structured"], create("uniform", {})
    ours, other = PrunableModel(model), PrunableModel(model, **units)
    calibration = api.calibrate(ours, windows())
    found = api.allocate(ours, calibration, method, sparsity=0.3, cut=cut)
    masks = api.make_masks(ours, calibration, found.problem, found.allocation, cut)
    with pytest.raises(ConfigError, match=r"calibration is of a model with other units .*Calibrate the one"):
        api.allocate(other, calibration, method, sparsity=0.3, cut=cut)
    with pytest.raises(ConfigError, match="problem is of a model with other units"):
        api.make_masks(other, calibration, found.problem, found.allocation, cut)
    with pytest.raises(ConfigError, match="calibration is of a model with other units"):
        api.make_masks(other, calibration, other.problem(0.3), found.allocation, cut)
    with pytest.raises(ConfigError, match="problem is of a model with other units"):
        api.install(other, found.problem, masks, cut)


def test_a_calibration_serves_other_limits_on_the_same_units_and_single_weights_of_any():
    model = tiny("llama")
    calibration = api.calibrate(PrunableModel(model), windows())
    for options, granularity in (({"keep_blocks": "0", "min_keep": 2}, "structured"), ({"align": 8}, "unstructured")):
        other = PrunableModel(model, **options)
        found = api.allocate(
            other, calibration, create("uniform", {}), sparsity=0.2, granularity=granularity, cut=CUTS[granularity]
        )
        api.make_masks(other, calibration, found.problem, found.allocation, CUTS[granularity])


@pytest.mark.parametrize("granularity", CUTS)
@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
def test_a_calibration_serves_the_model_loaded_again_after_its_own_was_pruned(granularity, pruner):
    """At a second sparsity, with the masks that a calibration of the new copy gives."""
    kinds = {"score": "wanda", "compensation": "ridge" if granularity == "structured" else "none"}
    cut, method = make_cut(granularity, pruner=pruner, **kinds), create("evolutionary", {})

    def prune(calibration, prunable, sparsity):
        asked = {"sparsity": sparsity, "cut": cut, "granularity": granularity, "budget": BUDGET}
        found = api.allocate(prunable, calibration, method, **asked)
        masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
        api.install(prunable, found.problem, masks, cut)
        return {**masks.kept, **masks.updates}

    fresh = PrunableModel(tiny("llama"))
    expected = prune(api.calibrate(fresh, windows()), fresh, 0.1)
    first, second = PrunableModel(tiny("llama")), PrunableModel(tiny("llama"))
    calibration = api.calibrate(first, windows())
    prune(calibration, first, 0.5)
    found = prune(calibration, second, 0.1)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.bad_input
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 4}, {"hidden_size": 96}])
def test_a_calibration_of_another_model_is_refused(changes):
    calibration, other = api.calibrate(PrunableModel(tiny("llama")), windows()), PrunableModel(tiny("llama", **changes))
    asked = {"sparsity": 0.3, "granularity": "unstructured", "cut": CUTS["unstructured"]}
    with pytest.raises(ConfigError, match=r"calibration knows no .* inputs\. Calibrate the model given"):
        api.allocate(other, calibration, create("uniform", {}), **asked)


@pytest.mark.parametrize("granularity", CUTS)
def test_a_search_leaves_the_model_as_it_was(granularity):
    prunable = PrunableModel(tiny("llama"))
    before = copy.deepcopy(prunable.model.state_dict())
    calibration = api.calibrate(prunable, windows())
    method, cut = create("evolutionary", {}), CUTS[granularity]
    api.allocate(prunable, calibration, method, sparsity=0.3, granularity=granularity, cut=cut, budget=BUDGET)
    after = prunable.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_search_that_fails_leaves_the_model_as_it_was(monkeypatch):
    prunable = PrunableModel(tiny("llama"))
    before = copy.deepcopy(prunable.model.state_dict())
    calibration, method = api.calibrate(prunable, windows()), create("evolutionary", {})
    monkeypatch.setattr(api.Tracker, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        api.allocate(prunable, calibration, method, sparsity=0.3, cut=CUTS["structured"], budget=BUDGET)
    after = prunable.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_answers_are_scored_at_the_checkpoints_and_end_at_the_allocation():
    prunable = PrunableModel(tiny("llama"))
    calibration, checkpoints = api.calibrate(prunable, windows()), (0.25, 0.5, 1.0)
    found = api.allocate(
        prunable, calibration, create("evolutionary", {}), sparsity=0.3, cut=CUTS["structured"], budget=BUDGET,
        checkpoints=checkpoints,
    )  # fmt: skip
    assert [answer.share for answer in found.answers] == list(checkpoints)
    assert found.answers[-1].keep == found.allocation.keep
    assert found.cost.selection_tokens <= BUDGET.finalists * windows().selection.numel()


def test_the_steps_of_the_workflow_give_what_the_api_gives(tiny_grid, monkeypatch):
    """Allocation, masks and perplexity of a search's cell, computed again in memory."""
    from ffp.pipeline import steps

    monkeypatch.chdir(tiny_grid)
    experiment = Experiment(Path("config/grid.yaml"))
    layout, grid = Layout.from_grid(experiment.grid), experiment.grid
    cell = next(cell for cell in experiment.cells() if cell.method == "fastforward-guided")
    batch = experiment.models[cell.model].batch_tokens
    torch.set_num_threads(experiment.models[cell.model].resources.threads)
    prunable = steps.load_prunable(experiment, cell, layout.model(cell.model).folder)
    stored = steps.read_calibration(prunable, layout.calibration(cell.model).folder)
    calibration, cut = api.calibrate(prunable, stored.windows, batch_tokens=batch), steps.cut_of(experiment, cell)
    found = api.allocate(
        prunable, calibration, experiment.create(cell.method), sparsity=float(cell.sparsity), cut=cut,
        budget=grid.search.budget(), seed=cell.seed, checkpoints=grid.search.checkpoints, batch_tokens=batch,
    )  # fmt: skip
    files = layout.cell(cell)
    assert schemas.AllocationFile.read(files.allocation).keep == found.allocation.keep
    points = schemas.AnswersFile.read(files.answers).points
    assert [point.loss for point in points] == [answer.loss for answer in found.answers]
    masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut, batch_tokens=batch)
    kept, _ = schemas.MASKS.read(files.masks)
    assert all(np.array_equal(masks.kept[name], index) for name, index in kept.items())


def test_the_public_functions_are_listed_and_imported_on_demand():
    import ffp

    assert {"prune", "allocate", "Pruned", "load_pruned", "list_methods"} <= set(ffp.__all__)
    assert all(callable(getattr(ffp, name)) for name in ffp.__all__)


def test_the_step_by_step_example_of_the_docs_runs_and_saves_what_loads_again(tmp_path, monkeypatch, hub_modules):
    code = Path("docs/python.md").read_text().partition("## Step by step")[2].partition("```python\n")[2]
    model, ids = tiny("llama", num_hidden_layers=6), torch.randint(0, 64, (72, 16))
    monkeypatch.chdir(tmp_path)
    exec(code.partition("```")[0], {"model": model, "ids": ids, "test_ids": ids[:4]})
    again = ffp.load_pruned("small-by-hand", device="cpu")
    assert torch.equal(again(ids[:2]).logits, model(ids[:2]).logits)
