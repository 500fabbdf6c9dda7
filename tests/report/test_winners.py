"""The first answer of a report: the best method of each setting, its ties, and a cheaper one among them."""

from ffp.report import build, plots, tables
from ffp.report.collect import collect
from ffp.report.groups import group, winners
from tests.helpers.cells import make_experiment, write_cell

METHODS = ["uniform", "owl", "evolutionary"]


def grid(folder, owl: float):
    """One model at two sparsities; at 20 % evolution is best, and owl's loss is given."""
    experiment = make_experiment(folder, methods=METHODS, tasks=None)
    write_cell(experiment, "tiny/structured/s0.00/dense/seed0", [2.0, 2.1, 1.9], tasks=False)
    for sparsity, losses in (("0.20", (4.0, owl, 2.5)), ("0.30", (4.0, 2.5, 3.0))):
        for name, loss in zip(METHODS, losses, strict=True):
            windows, tokens = [loss, loss + 0.101, loss - 0.1], 300 * (name == "evolutionary")
            write_cell(experiment, f"tiny/structured/s{sparsity}/{name}/seed0", windows, tokens=tokens, tasks=False)
    return experiment


def test_the_best_of_each_setting_stands_alone_where_nothing_ties(tmp_path):
    first, second = winners(group(collect(grid(tmp_path, owl=2.7))))
    assert (first.best.method, first.ties, first.cheaper) == ("evolutionary", [], None)
    assert (second.best.method, second.block) == ("owl", ("tiny", "structured", "0.30"))


def test_a_tie_that_forwards_fewer_tokens_is_named(tmp_path):
    experiment = grid(tmp_path, owl=2.7)
    write_cell(experiment, "tiny/structured/s0.20/owl/seed0", [2.5, 2.62, 2.39], tasks=False)
    groups = group(collect(experiment))
    first = winners(groups)[0]
    assert [tie.method for tie in first.ties] == ["owl"] and first.cheaper is first.ties[0]
    table = tables.winners(experiment, groups)
    assert [entry.text for entry in table.lines[0].entries][-3:] == ["300", "owl", "owl (0)"]
    assert [entry.text for entry in table.lines[1].entries][-2:] == [tables.DASH] * 2


def test_the_page_begins_with_it_beside_the_whole_grid(tmp_path):
    experiment = grid(tmp_path, owl=2.7)
    page = build(experiment, tmp_path / "report").read_text()
    assert (
        page.index('<section id="s-answer">') < page.index('<figure id="overview">') < page.index('id="s-comparison"')
    )
    assert page.count('<figure id="overview">') == 1
    assert "| 30 | 7.39 | owl | 12.19 " in (tmp_path / "report/winners.md").read_text()
    (axis,) = plots.FIGURES["overview"](experiment, group(collect(experiment))).axes
    names = [label.get_text().split("\n") for label in axis.get_yticklabels()]
    assert names == [["owl", "no search"], ["evolutionary", "300 search tokens"], ["uniform", "no search"]]


def test_a_grid_without_a_finished_cell_has_no_answer(tmp_path):
    page = build(make_experiment(tmp_path, methods=METHODS), tmp_path / "report").read_text()
    assert '<section id="s-answer">' not in page and '<figure id="overview">' in page
