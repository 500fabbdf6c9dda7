"""The report's page in a real browser: sorting, filtering, opening a cell, on a desktop, a phone and in the dark."""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from ffp.report import build
from tests.helpers import browser
from tests.helpers.cells import TITLE, fill, make_experiment, write_cell

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
CELL = "tiny/structured/s0.20/owl/seed0"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    experiment = make_experiment(folder, models=["tiny", "other"])
    fill(experiment)
    return build(experiment, folder / "report")


@pytest.fixture(scope="module")
def desktop(page):
    with browser.open_page(page) as driver:
        yield driver


@pytest.fixture
def fresh(desktop, page):
    """The page as it opens, asked again for each test."""
    desktop.get("about:blank")
    desktop.get(page.as_uri())
    return desktop


def column(driver, table: str, heading: str) -> list[str]:
    """The shown texts of a column."""
    headings = [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"#{table} thead th")]
    place = headings.index(heading) + 1
    return [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"#{table} tbody td:nth-child({place})")]


def press(driver, table: str, heading: str, key: str | None = None) -> None:
    """Click a heading, or give a key to it."""
    for cell in driver.find_elements(By.CSS_SELECTOR, f"#{table} thead th"):
        if cell.text == heading:
            if key:
                cell.find_element(By.CSS_SELECTOR, "[tabindex='0']").send_keys(key)
            else:
                cell.click()


def shown(driver) -> str:
    return driver.find_element(By.CSS_SELECTOR, "dialog[open]").text


def waits_for(driver, condition) -> None:
    WebDriverWait(driver, 10).until(condition)


def test_nothing_is_asked_of_a_server_and_nothing_complains(page):
    with browser.open_page(page) as driver:
        driver.find_element(By.LINK_TEXT, "owl").click()
        waits_for(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open]"))
        assert driver.get_log("browser") == []
        assert set(browser.requests(driver)) <= {page.as_uri()}


@pytest.mark.parametrize("key", [None, Keys.ENTER], ids=["mouse", "keyboard"])
def test_headings_sort_by_the_number_behind_them(fresh, key):
    press(fresh, "comparison", "PPL", key)
    values = [float(text.split()[0]) for text in column(fresh, "comparison", "PPL") if text[0].isdigit()]
    assert len(values) == 6 and values == sorted(values)
    press(fresh, "comparison", "PPL", key)
    values = [float(text.split()[0]) for text in column(fresh, "comparison", "PPL") if text[0].isdigit()]
    assert values == sorted(values, reverse=True)


def test_filters_narrow_tables_and_figures_together_and_can_be_undone(fresh):
    everything = column(fresh, "comparison", "sparsity (%)")
    Select(fresh.find_element(By.NAME, "sparsity")).select_by_visible_text("30%")
    Select(fresh.find_element(By.NAME, "model")).select_by_value("tiny")
    assert set(column(fresh, "comparison", "sparsity (%)")) == {"0", "30"}
    assert set(column(fresh, "comparison", "model")) == set(column(fresh, "cells", "model")) == {TITLE}
    panels = [p for p in fresh.find_elements(By.CSS_SELECTOR, "#allocation .panel") if p.is_displayed()]
    assert [p.get_attribute("data-block") for p in panels] == ["tiny|structured|0.30"]
    fresh.find_element(By.CSS_SELECTOR, "#filters button").click()
    waits_for(fresh, lambda d: column(d, "comparison", "sparsity (%)") == everything)


def test_the_search_box_finds_a_method(fresh):
    fresh.find_element(By.CSS_SELECTOR, "#s-cells .dt-search input").send_keys("evolutionary")
    assert set(column(fresh, "cells", "method")) == {"evolutionary"}
    assert "cannot be read" in fresh.find_element(By.ID, "cells").text


@pytest.mark.parametrize("link", ["#comparison a", "#cells a", "#quality_cost svg a"])
def test_a_cell_opens_with_its_commands_and_closes_by_a_key(fresh, link):
    target = fresh.find_element(By.CSS_SELECTOR, f"{link}[href='#{CELL}']")
    fresh.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", target)
    waits_for(fresh, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open]"))
    text = shown(fresh)
    assert CELL in text and "ffp allocate --config" in text and "ffp evaluate" in text
    fresh.switch_to.active_element.send_keys(Keys.ESCAPE)
    waits_for(fresh, lambda d: not d.find_elements(By.CSS_SELECTOR, "dialog[open]"))


def test_an_address_opens_its_cell(page):
    with browser.open_page(page) as driver:
        driver.get(f"{page.as_uri()}#tiny/structured/s0.30/evolutionary/seed0")
        waits_for(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open]"))
        assert "failed: " in shown(driver) and "cannot be read" in shown(driver)


def test_labels_are_shown_as_text(fresh):
    assert "A <i>grid</i>" in fresh.find_element(By.TAG_NAME, "h1").text
    assert TITLE in column(fresh, "cells", "model")
    assert not fresh.find_elements(By.CSS_SELECTOR, "main b, h1 i")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_scrolls_one_way_and_colours_follow_the_reader(page, dark):
    with browser.open_page(page, width=390, height=844, dark=dark) as driver:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        back, text = driver.execute_script(
            "const s = [document.body, document.querySelector('.panel svg text')].map(e => getComputedStyle(e));"
            "return [s[0].backgroundColor, s[1].fill]"
        )
        light = [sum(map(int, colour[4:-1].split(","))) > 384 for colour in (back, text)]
        assert light == [not dark, dark]


def test_figures_have_words_and_every_control_a_name(fresh):
    names = "return [...document.querySelectorAll('.panel')].map(e => e.getAttribute('aria-label'))"
    words = fresh.execute_script(names)
    assert words and all("sparsity: " in label or "every method: " in label for label in words)
    unnamed = (
        "return [...document.querySelectorAll('button, a, input, select')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert fresh.execute_script(unnamed) == 0


@pytest.fixture
def saved(fresh, tmp_path):
    """Presses a button of the comparison and returns what was saved."""
    return lambda label, name: press_and_read(fresh, tmp_path, label, name)


def press_and_read(driver, folder: Path, label: str, name: str) -> str:
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    click_button(driver, label)
    waits_for(driver, lambda _: (folder / name).is_file())
    return (folder / name).read_text("utf-8")


def click_button(driver, label: str) -> None:
    (button,) = [
        b for b in driver.find_elements(By.CSS_SELECTOR, "#s-comparison .dt-button") if b.text.startswith(label)
    ]
    button.click()


def hide(driver, heading: str) -> None:
    click_button(driver, "Columns")

    def choice(driver):
        choices = driver.find_elements(By.CSS_SELECTOR, ".dt-button-collection .dt-button")
        return next((choice for choice in choices if choice.text.strip() == heading), None)

    WebDriverWait(driver, 10).until(choice).click()
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    waits_for(driver, lambda d: not d.find_elements(By.CSS_SELECTOR, ".dt-button-collection"))


def test_shown_rows_without_hidden_columns_are_saved_as_csv(fresh, saved):
    Select(fresh.find_element(By.NAME, "sparsity")).select_by_visible_text("30%")
    hide(fresh, "evaluations")
    rows = list(csv.reader(saved("CSV", "comparison.csv").splitlines()))
    assert "evaluations" not in rows[0] and rows[0][:3] == ["model", "sparsity (%)", "method"]
    assert {row[1] for row in rows[1:]} == {"0", "30"} and {row[0] for row in rows[1:]} == {TITLE, "Other"}
    assert len({len(row) for row in rows}) == 1


def test_methods_with_several_seeds_are_saved_by_their_names(tmp_path):
    experiment = make_experiment(tmp_path, seeds=[0, 1])
    fill(experiment)
    write_cell(experiment, "tiny/structured/s0.20/evolutionary/seed1", [3.42, 3.89, 2.9], tokens=400)
    with browser.open_page(build(experiment, tmp_path / "report")) as driver:
        assert "evolutionary 0 1" in column(driver, "comparison", "method"), "each seed can be opened"
        rows = list(csv.reader(press_and_read(driver, tmp_path, "CSV", "comparison.csv").splitlines()))
        tex = press_and_read(driver, tmp_path, "LaTeX", "comparison.tex")
    methods = {"dense", "uniform", "owl", "evolutionary", "fastforward"}
    assert {row[rows[0].index("method")] for row in rows[1:]} == methods
    assert "& evolutionary &" in tex and not any(f"& {name} 0" in tex for name in methods)


def test_the_same_rows_are_saved_as_latex_that_compiles(fresh, saved, tmp_path):
    Select(fresh.find_element(By.NAME, "model")).select_by_value("tiny")
    body = saved("LaTeX", "comparison.tex")
    assert r"\textless{}b\textgreater{}Tiny" in body and "owl" in body
    compiles(body, tmp_path)


def test_every_table_of_the_report_compiles(page, tmp_path):
    tables = sorted(page.parent.glob("*.tex"))
    assert len(tables) == 5
    compiles("\n\n".join(table.read_text() for table in tables), tmp_path)


def compiles(body: str, folder: Path) -> None:
    """Runs pdflatex on it, where there is one."""
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex (Debian: apt-get install texlive-latex-recommended)")
    page = rf"\documentclass[a3paper]{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (folder / "all.tex").write_text(page.replace("\n% needs", "% needs"), "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
