"""The report of a grid whose titles, names of published methods and reasons of failures are hostile."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ffp.config import Experiment
from ffp.core.plain import one_line
from ffp.report import build
from tests.helpers import browser
from tests.helpers.cells import SOURCE, fill, make_experiment
from tests.helpers.hostile import VALUES

SHORT = [value for value in VALUES.values() if len(value) < 1000]
ALL = " ".join(SHORT)
FORMULA = VALUES["a formula"]


def edit(path: Path, **changes) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report whose free texts are all hostile values; a title is a formula, another one has 20,000 letters."""
    folder = tmp_path_factory.mktemp("hostile")
    models = ["tiny", "other", "long"]
    (folder / "config/models").mkdir(parents=True)
    (folder / "config/models/long.yaml").write_text(yaml.safe_dump({"title": VALUES["a long word"], "source": SOURCE}))
    hub = {"kind": "hub", "repo": "a/b", "revision": "main"}
    make_experiment(folder, models=models, title=ALL, evaluation={"context": 2048})
    edit(folder / "config/models/tiny.yaml", title=FORMULA, source=hub)
    edit(folder / "config/models/other.yaml", title=ALL)
    edit(folder / "config/texts/words.yaml", title=ALL)
    edit(folder / "config/tasks/two.yaml", title=ALL)
    values = {"m": {value: {"0.20": 9.0} for value in [*SHORT, VALUES["long words"]]}}
    origin = {"source": ALL, "url": "https://example.org/a", "status": "primary", "remarks": ALL, "text": "words",
              "granularity": "structured", "context": 2048, "calibration": ALL, "values": values}  # fmt: skip
    published = {"models": {"m": ["a/b"]}, "sets": [origin]}
    (folder / "config/published.yaml").write_text(yaml.safe_dump(published))
    experiment = Experiment(folder / "config/grid.yaml")
    fill(experiment)
    failed = folder / "results/cells/tiny/structured/s0.30/fastforward/seed0/scores.json"
    failed.parent.mkdir(parents=True, exist_ok=True)
    failed.write_text('{"schema": "=<script>owned=1</script>\\u001b[2J\\u202e"}')
    build(experiment, folder / "report")
    return folder / "report"


class Elements(HTMLParser):
    """Names of elements, attributes and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


def test_the_page_has_no_script_handler_or_address_but_its_own(folder):
    page = Elements()
    page.feed((folder / "index.html").read_text())
    assert page.names.count("script") == 5 and "img" not in page.names
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = {value for name, value in page.attributes if name in ("href", "src", "xlink:href")}
    others = {value for value in addresses if not value.startswith(("#", "data:image/png;base64,"))}
    assert others == {"data:,", "https://example.org/a", "https://example.org"}  # the last one as it is written
    assert "{{ 7 * 7 }}" in (folder / "index.html").read_text()


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_a_browser_runs_nothing_of_it_and_saves_formulas_as_text(folder, tmp_path):
    with browser.open_page(folder / "index.html") as driver:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        failed = "#tiny/structured/s0.30/fastforward/seed0"
        driver.execute_script(f"location.hash = '{failed}'")
        WebDriverWait(driver, 20).until(lambda d: "failed" in d.find_element(By.ID, "cell").text)
        assert "<script>" in driver.find_element(By.ID, "cell").text
        assert driver.execute_script("return typeof owned") == "undefined"
        driver.execute_script("document.getElementById('cell').close()")
        button = driver.find_element(By.XPATH, "//div[@id='comparison_wrapper']//button[contains(., 'CSV')]")
        driver.execute_script("arguments[0].click()", button)
        WebDriverWait(driver, 20).until(lambda d: (tmp_path / "comparison.csv").exists())
    rows = list(csv.reader((tmp_path / "comparison.csv").open(encoding="utf-8")))
    assert f"'{FORMULA}" in {row[0] for row in rows}
    assert not formulas(rows)


def formulas(rows: list[list[str]]) -> list[str]:
    """The entries that a spreadsheet would compute."""
    number = re.compile(r"[+-][\d.,]+( ± [\d.,]+)?(e[+-]\d+)?")
    return [entry for row in rows for entry in row if entry[:1] in "=+-@\t\r" and entry and not number.fullmatch(entry)]


def test_no_table_of_figures_has_a_formula(folder):
    for name in ("comparison", "summary"):
        assert not formulas(list(csv.reader((folder / f"{name}.csv").open(encoding="utf-8"))))


TEX = re.compile(r" & |\\(textbf|textit)\{|\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}"
                 r"|\\[&%$#_{}]|\\\\$|\$(\\pm|\\Delta|-|\^\\dagger)\$|[}]|[^\\&%$#_{}~^]")  # fmt: skip


def test_latex_has_no_command_but_those_of_the_tables(folder):
    for path in folder.glob("*.tex"):
        body = path.read_text(encoding="utf-8")
        assert all(character.isprintable() or character == "\n" for character in body)
        for line in body.splitlines():
            if not line.startswith("%") and line not in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
                left = TEX.sub("", re.sub(r"^\\begin\{tabular\}\{[lr]+\}$", "", line))
                assert left == "", f"{path.name}: {left} in {line}"


def test_markdown_has_no_element_and_no_line_but_its_own(folder):
    from markdown_it import MarkdownIt

    for path in folder.glob("*.md"):
        page = Elements()
        page.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(path.read_text(encoding="utf-8")))
        assert set(page.names) <= {"table", "thead", "tbody", "tr", "th", "td", "p", "em", "strong"}, path.name


def test_figures_have_room_for_a_title_of_20000_letters(folder):
    for path in folder.glob("*.svg"):
        height = re.search(r'height="([\d.]+)pt"', path.read_text())
        assert float(height[1]) < 5000 and VALUES["a long word"] not in path.read_text()


def test_titles_are_there_as_a_reader_would_read_them(folder):
    assert one_line(ALL).startswith("<script>") and "&lt;script&gt;owned=1" in (folder / "index.html").read_text()
