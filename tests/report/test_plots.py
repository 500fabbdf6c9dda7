"""The figures: markers, panels, colours, the searches' progress, and the kept shares."""

import numpy as np
import pytest

from ffp.allocators.tracker import TRACE_COLUMNS
from ffp.core.problem import Decision
from ffp.report import captions, plots
from ffp.report.collect import collect
from ffp.report.groups import group
from ffp.report.page import _alt
from ffp.report.plots import quality
from ffp.report.plots.allocation import mean_shares
from ffp.store.schemas import TRACE
from tests.helpers.cells import files_of, fill, make_experiment, write_allocation, write_cell


def groups_of(experiment):
    return group(collect(experiment))


def search_losses(experiment, losses, rewards) -> None:
    """Writes a cell for each seed of each search: losses of its answers by tokens, and rewards in its trace."""
    for method, seeds in losses.items():
        for seed, answers in enumerate(seeds):
            path = f"tiny/structured/s0.20/{method}/seed{seed}"
            write_cell(experiment, path, [3.0, 3.1], tokens=400, answers=answers)
            rows = [dict.fromkeys(TRACE_COLUMNS, 1) | {"tokens": t, "best": rewards[method]} for t in answers]
            TRACE.write(files_of(experiment, path).trace, rows)
            assert len(TRACE.read(files_of(experiment, path).trace)) == len(answers)


def lines_of(experiment) -> dict[str, tuple[list[float], list[float]]]:
    """The drawn curves of the only panel by method, matched by colour."""
    (axis,) = plots.FIGURES["anytime"](experiment, groups_of(experiment)).axes
    style = plots.looks(experiment)
    return {
        name: tuple(map(list, line.get_data()))
        for line in axis.lines for name, look in style.items() if line.get_color() == look.colour
    }  # fmt: skip


def test_markers_of_one_cost_hide_neither_each_other_nor_behind_the_axis():
    many = [(0.0, 100.0 + place) for place in range(12)]
    points = [*many, (0.0, 5000.0), (20_000.0, 100.0), (20_100.0, 101.0), (30_000.0, 100.0)]
    offsets = quality.shifts(points)
    assert len({round(offset, 3) for offset in offsets[:12]}) == 12
    assert max(map(abs, offsets)) == pytest.approx(quality.ROOM / 2)
    assert offsets[12] == offsets[15] == 0  # apart in perplexity, apart in cost
    assert offsets[14] - offsets[13] == quality.SPACING


def test_figures_of_many_methods_with_long_names_keep_their_panels(tmp_path):
    names = [f"uniform-under-a-rather-long-name-{place}" for place in range(24)]
    experiment = make_experiment(tmp_path, methods=names, variants={name: {"use": "uniform"} for name in names})
    for place, name in enumerate(names):
        write_cell(experiment, f"tiny/structured/s0.20/{name}/seed0", [2.0 + place / 10, 8.0])
    for name in ("quality_cost", "allocation"):
        figure = plots.FIGURES[name](experiment, groups_of(experiment))
        figure.draw_without_rendering()
        height = figure.get_figheight()
        assert all(axis.get_position().height * height > 2 for axis in figure.axes if axis.get_title())
        low, _ = figure.axes[0].get_ylim()
        assert name == "allocation" or low > 1  # logarithmic, bars that reach below zero or not


@pytest.mark.parametrize("seed", range(5))
def test_progress_ends_in_the_order_of_the_answers_losses_whatever_the_rewards_say(tmp_path, seed):
    rng = np.random.default_rng(seed)
    methods = ["evolutionary", "fastforward", "fastforward-guided", "random-search", "cma-es"]
    experiment = make_experiment(tmp_path, methods=methods, sparsities=[0.2], seeds=[0, 1, 2])
    losses = {m: [dict(zip((100, 200, 400), rng.random(3), strict=True)) for _ in range(3)] for m in methods}
    final = {m: np.mean([answers[400] for answers in seeds]) for m, seeds in losses.items()}
    search_losses(experiment, losses, rewards={m: loss for m, loss in final.items()})  # the worst has the best reward
    drawn = {m: losses[-1] for m, (tokens, losses) in lines_of(experiment).items() if tokens[-1] == 400}
    assert sorted(drawn, key=drawn.get) == sorted(final, key=final.get)
    assert drawn == pytest.approx(final)
    members = [g for g in groups_of(experiment) if g.method != "dense"]
    shown = [part.split()[0] for part in _alt("anytime", members).split("at the end: ")[1].split("; ")]
    assert set(shown) == set(methods)


def test_progress_is_a_mean_with_a_band_that_holds_every_seed_where_all_have_an_answer(tmp_path):
    experiment = make_experiment(tmp_path, seeds=[0, 1], sparsities=[0.2])
    seeds = [{100: 0.9, 200: 0.8, 400: 0.5}, {200: 0.4, 400: 0.3}]
    search_losses(experiment, {"fastforward": seeds}, {"fastforward": 0.1})
    (group_,) = (g for g in groups_of(experiment) if g.done)
    tokens, losses = plots.progress(group_)
    assert tokens.tolist() == [200, 400] and losses.tolist() == [[0.8, 0.5], [0.4, 0.3]]
    assert lines_of(experiment)["fastforward"] == ([200, 400], pytest.approx([0.6, 0.4]))
    (axis,) = plots.FIGURES["anytime"](experiment, groups_of(experiment)).axes
    band = axis.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (0.3, 0.8)


def test_searches_of_older_versions_are_left_out_of_the_progress_with_a_note(tmp_path):
    experiment = make_experiment(tmp_path, methods=["evolutionary", "fastforward", "uniform"], sparsities=[0.2])
    both = {"evolutionary": [{100: 0.9, 400: 0.5}], "fastforward": [{400: 0.3}]}
    search_losses(experiment, both, {"evolutionary": 0.1, "fastforward": 0.2})
    write_cell(experiment, "tiny/structured/s0.20/uniform/seed0", [3.0, 3.1])
    assert "Left out" not in captions.figure(experiment, "anytime", collect(experiment))
    files_of(experiment, "tiny/structured/s0.20/evolutionary/seed0").answers.unlink()
    assert set(lines_of(experiment)) == {"fastforward"}
    assert "Left out: 1 search " in captions.figure(experiment, "anytime", collect(experiment))


def test_tiles_are_drawn_for_the_modules_that_each_granularity_has(tmp_path):
    experiment = make_experiment(tmp_path, granularities=["structured", "unstructured", "n-of-4"], sparsities=[0.5])
    names = {"structured": ["attention", "ffn"], "unstructured": ["attention.q", "attention.o", "ffn.up"],
             "n-of-4": [""]}  # fmt: skip
    for granularity, parts in names.items():
        path = f"tiny/{granularity}/s0.50/uniform/seed0"
        write_cell(experiment, path, [3.0, 3.1])
        decisions = [
            Decision(name=f"block{b:02d}.{part}".rstrip("."), n_units=4, params_per_unit=10 * (i + 1))
            for b in (0, 1) for i, part in enumerate(parts)
        ]  # fmt: skip
        write_allocation(experiment, experiment.cell(path), decisions=decisions, keep=[1, 2, 4][: len(parts)] * 2)
    groups = [g for g in groups_of(experiment) if g.method == "uniform"]
    shares = {g.block[1]: mean_shares(g) for g in groups}
    # q keeps 1 of 4 units of 10 parameters, o 2 of 4 of 20: together 50 of 120.
    assert shares["unstructured"] == {"attention": {0: 50 / 120, 1: 50 / 120}, "ffn": {0: 1.0, 1: 1.0}}
    titles = [axis.get_title().split(", ")[-1] for axis in plots.FIGURES["allocation"](experiment, groups).axes]
    assert titles[:-1] == ["attention", "FFN", "attention", "FFN", "whole blocks"]


def test_a_long_title_stays_within_its_panel(experiment):
    named = experiment.models["tiny"].model_copy(update={"title": "A model whose name goes on and on " * 4})
    experiment.models["tiny"] = named
    fill(experiment)
    figure = plots.FIGURES["quality_cost"](experiment, groups_of(experiment))
    figure.draw_without_rendering()
    assert figure.axes
    for axis in figure.axes:
        assert axis.title.get_window_extent().width <= 1.1 * axis.get_window_extent().width


def test_the_front_holds_the_points_that_nothing_beats():
    points = [(0, 50.0), (0, 40.0), (10, 45.0), (20, 30.0), (30, 30.0), (40, 20.0)]
    slow = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    assert quality.pareto(points) == sorted(slow)


def test_looks_are_distinct_and_do_not_depend_on_the_grid(tmp_path):
    variants = {f"v{i}": {"use": "owl"} for i in range(12)}
    many = plots.looks(make_experiment(tmp_path / "many", methods=["owl", *variants], variants=variants))
    few = plots.looks(make_experiment(tmp_path / "few", methods=["owl"]))
    assert few["owl"] == many["owl"]
    assert len(set(many.values())) == len(many)
