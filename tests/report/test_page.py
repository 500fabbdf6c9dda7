"""The page and the folder of the report: escaping, filters, gaps, and the same bytes twice."""

import base64
import gzip
import hashlib
import html.parser
import json
import re
import sys

import pytest

from ffp.report import build, page, plots
from ffp.report.collect import collect
from ffp.store import layout
from ffp.store.provenance import provenance
from tests.helpers.cells import TITLE, fill, make_experiment, write_cell


class Page(html.parser.HTMLParser):
    """Collects the tags and whatever a browser would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_made_without_the_settings_of_itables_in_a_users_home(built):
    """Importing itables reads them, and fails where the home directory is not known."""
    assert "itables" not in sys.modules and (built[1] / "index.html").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_empty_and_partial_grids_are_shown(experiment, tmp_path, finished, caplog):
    if finished:
        write_cell(experiment, "tiny/structured/s0.00/dense/seed0", [3.0, 3.1])
    with caplog.at_level("INFO"):
        build(experiment, tmp_path / "report")
    total = len(list(experiment.cells()))
    assert f"{total} cells, {f'1 done, {total - 1}' if finished else total} missing" in caplog.text
    for name in ("quality_cost", "anytime", "allocation"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Incomplete: " in (tmp_path / "report" / "index.html").read_text()


def test_the_page_escapes_labels_and_loads_nothing(built):
    source = (built[1] / "index.html").read_text()
    parsed = Page()
    parsed.feed(source)
    assert "b" not in parsed.tags and "i" not in parsed.tags
    assert TITLE in parsed.text and "A <i>grid</i>" in parsed.text
    assert parsed.loads and all(value.startswith(("data:", "#")) for value in parsed.loads)
    assert not re.search(r"<(script|link)[^>]+https?:|@import|url\((?![\"']?(#|data:))", source)
    assert "default-src 'none'" in source
    identifiers = re.findall(r'<[^>]+ id="([^"]+)"', source)
    assert len(identifiers) == len(set(identifiers))


GRIDS = {
    "one sparsity": {"sparsities": [0.2]},
    "sparsities of one granularity": {
        "granularities": ["structured", "unstructured"], "own_sparsities": {"unstructured": [0.5, 0.6, 0.7]},
        "methods": ["uniform", "owl"],
    },
    "sparsities of every granularity": {
        "models": ["tiny", "other"], "granularities": ["structured", "n-of-4"], "methods": ["uniform"],
        "own_sparsities": {"structured": [0.1, 0.2], "n-of-4": [0.5]},
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", GRIDS.values(), ids=GRIDS)
def test_every_cell_of_a_grid_can_be_filtered(tmp_path, changes):
    experiment = make_experiment(tmp_path, **changes)
    choices = page.filters(experiment)
    found = {name: set() for name in choices}
    for record in collect(experiment):
        for name, value in zip(("model", "granularity", "sparsity"), record.block, strict=True):
            found[name] |= {value} - {"0.00"}  # the page shows the dense model at every sparsity
    assert found == {name: set(values) for name, values in choices.items()}
    source = build(experiment, tmp_path / "report").read_text()
    for name, values in found.items():
        shown = re.search(rf'<select name="{name}">(.*?)</select>', source)
        assert len(values) == 1 if shown is None else {*re.findall(r'value="([^"]+)"', shown[1])} == values


def packed_details(source: str) -> dict:
    packed = re.search(r'id="cell-details">([^<]+)<', source)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_each_cell_tells_its_commands_provenance_and_logs(experiment, tmp_path, monkeypatch):
    fill(experiment)
    monkeypatch.chdir(tmp_path)
    log = layout.Layout.from_grid(experiment.grid).log("evaluate", "tiny/structured/s0.30/owl/seed0")
    log.parent.mkdir(parents=True)
    log.write_text("12:00:00 started\rprogress 1\rprogress 2\nffp evaluate: data/text is missing. Fetch it.\n")
    found = packed_details(build(experiment, tmp_path / "report").read_text())
    assert list(found) == [record.cell.path for record in collect(experiment)]
    cell = found["tiny/structured/s0.20/fastforward/seed0"]
    assert [line.split()[1] for line in cell["commands"]] == ["allocate", "apply", "evaluate"]
    assert ["commit", provenance().commit] in cell["evidence"]["provenance of the evaluation"]
    assert ["model", "cafe"] in cell["evidence"]["provenance of the search"]
    assert ["n_tokens", "300"] in cell["evidence"]["search cost"]
    failed = found["tiny/structured/s0.30/owl/seed0"]
    assert (failed["status"], failed["reason"]) == ("failed", "ffp evaluate: data/text is missing. Fetch it.")
    assert failed["logs"] == {"evaluate": "progress 2\nffp evaluate: data/text is missing. Fetch it."}


def test_two_builds_give_the_same_bytes_in_the_files_of_the_layout(built, tmp_path):
    experiment, report = built
    assert build(experiment, tmp_path / "again") == tmp_path / "again" / "index.html"
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        for folder in (report, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {path.name for path in layout.ReportFiles(report).all}
    assert tuple(plots.FIGURES) == tuple(page.TITLES) == layout.FIGURES
