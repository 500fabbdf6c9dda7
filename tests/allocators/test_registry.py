"""Finding methods, checking their hyper-parameters, and methods of other packages."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from ffp.allocators import METHODS, ParameterError, accepted, create, discover, find, is_search
from ffp.allocators.base import Method
from ffp.core.errors import ConfigError

THIRD_PARTY = Path(__file__).parents[1] / "helpers/third_party"
PARAMETERS = [(name, key) for name, method in METHODS.items() for key in method.model_fields]
each_parameter = pytest.mark.parametrize(("name", "key"), PARAMETERS)
BAD = {"boolean": "maybe", "integer": 1.5, "number": "much", "string": 7, "array": 3}


def refused(name, params):
    with pytest.raises(ParameterError) as caught:
        create(name, params)
    line = str(caught.value)
    assert "\n" not in line and f"method {name!r}" in line
    return caught.value.key, line


@each_parameter
def test_a_misspelt_parameter_is_refused_with_near_matches(name, key):
    typo = key[:-2] + key[-1] + key[-2] + "s"
    where, line = refused(name, {typo: 1})
    assert where == typo and repr(typo) in line
    assert re.search(rf"(did you mean|known:) .*\b{key}\b", line)


@each_parameter
def test_a_value_out_of_bounds_is_refused_with_what_is_accepted(name, key):
    schema = METHODS[name].model_json_schema()["properties"][key]
    bad = [BAD[schema["type"]]]
    bad += [schema["minimum"] - 1] if "minimum" in schema else []
    bad += [schema["maximum"] + 1] if "maximum" in schema else []
    for value in bad:
        where, line = refused(name, {key: value})
        assert where == key and f"{key} = {value!r}" in line
        if "enum" in schema:
            assert all(option in line for option in schema["enum"]) or "did you mean" in line
        else:
            assert f"is not {accepted(METHODS[name], key)}" in line


@pytest.mark.parametrize("name", METHODS)
def test_what_a_class_declares_is_no_parameter(name):
    _, line = refused(name, {"name": "other"})
    assert line.startswith(f"method '{name}' has no parameter 'name': ")


class Open(Method):
    """As a method of another package may be: its number has no largest value."""

    size: float = Field(1.0, ge=0)


def test_bounds_are_said_in_words():
    assert accepted(find("owl"), "max_deviation") == "a number from 0 to 0.5"
    assert accepted(Open, "size") == "a number from 0 up"
    assert accepted(find("owl"), "parity") == "true or false"
    assert accepted(find("flap"), "structure") == "one of AL-AM, AL-MM, UL-MM, UL-UM"
    assert accepted(find("evolutionary"), "offspring") == "a whole number from 0 to 10000"


def test_infinite_numbers_and_parameters_that_exclude_each_other_are_refused():
    refused("owl", {"outlier_threshold": float("inf")})
    refused("owl", {"outlier_threshold": float("nan")})
    _, line = refused("import", {})
    assert line == "method 'import' needs either file or values. Give one of them in params."
    where, _ = refused("import", {"values": [0.5, 2]})
    assert where == "values.1"


def test_an_unknown_method_is_refused_with_near_matches():
    with pytest.raises(ConfigError, match=r"unknown method 'fastfoward': did you mean fastforward"):
        find("fastfoward")


def test_built_in_methods_are_those_with_a_file_heuristics_first():
    folder = Path(sys.modules[METHODS["owl"].__module__].__file__).parents[1]
    files = {kind: [f.stem for f in (folder / kind).glob("[!_]*.py")] for kind in ("heuristics", "searches")}
    names = [name for name, method in METHODS.items() if method.__module__.startswith("ffp.")]
    kinds = [is_search(METHODS[name]) for name in names]
    assert kinds == [False] * len(files["heuristics"]) + [True] * len(files["searches"])
    assert list(discover()) == list(METHODS)


@pytest.mark.slow
def test_finding_methods_and_reading_a_grid_imports_no_torch():
    code = "import sys, ffp.allocators as a; [a.create(n, {}) for n in a.METHODS if n != 'import']; "
    code += "print([name for name in ('torch', 'cmaes', 'transformers') if name in sys.modules])"
    assert python(code) == "[]"


def python(code, *folders):
    """What a new interpreter with these folders on its path prints, or the error of ffp that it ends with."""
    path = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]}\n"
    guard = f"from ffp.core.errors import ConfigError\ntry:\n    {code}\nexcept ConfigError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", path + guard], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def install(folder, name, entry, source=None):
    """Puts a package with one entry point into a folder, as pip would."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ffp.allocators]\n{entry}\n")
    if source is not None:
        (folder / f"{entry.split('= ')[1].split(':')[0]}.py").write_text(source)


@pytest.fixture
def example(tmp_path):
    """The example package of tests/helpers/third_party, installed."""
    install(tmp_path, "ffp-by-size", "by-size = ffp_by_size:BySize")
    shutil.copy(THIRD_PARTY / "ffp_by_size.py", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_pip_installs_a_package_whose_method_is_found(tmp_path):
    source = shutil.copytree(THIRD_PARTY, tmp_path / "source")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(pip, check=True, timeout=300)
    code = "from ffp.allocators import METHODS, create; print(list(METHODS)[-1], create('by-size', {}).strength)"
    assert python(code, target) == "by-size 0.5"


@pytest.mark.slow
def test_a_method_of_another_package_allocates_and_checks_its_parameters(example):
    code = "from ffp.allocators import create; from tests.helpers.synthetic import structured_problem; "
    code += "p = structured_problem(); create('by-size', {'strength': 1}).allocate(p, None).check(p); "
    code += "create('by-size', {'strenght': 1})"
    expected = "method 'by-size' has no parameter 'strenght': did you mean strength?"
    assert python(code, example, Path(__file__).parents[2]) == expected


@pytest.mark.slow
def test_the_list_of_methods_names_the_package_of_a_method_that_is_not_from_ffp(example):
    code = "from ffp.config import listing; print(*listing.lines(listing.rows('methods')), sep='\\n')"
    *ours, last = python(code, example).splitlines()
    assert re.fullmatch(r"by-size +heuristic +large decisions lose more +- +ffp-by-size", last)
    assert len(ours) == len(METHODS) and not any("ffp-by-size" in line for line in ours)


CLASS = """
from ffp.allocators.base import Heuristic
class Method(Heuristic):
    name = "{name}"
    version = summary = "1"
    {more}
    def allocate(self, problem, stats): ...
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "package 'ffp-extra' offers the method 'extra', but extra:Method cannot be imported: ModuleNotFound"),
        ("raise ValueError('two\\nlines')", "cannot be imported: ValueError: two lines. Repair or uninstall"),
        ("Other = 1", "cannot be imported: AttributeError"),
        ("Method = 1", "package 'ffp-extra': extra:Method has no name. Repair or uninstall the package."),
        (CLASS.format(name="extra", more=""), "package 'ffp-extra': extra:Method has no citation. Repair"),
        (CLASS.format(name="owl", more="citation = '-'"), "package 'ffp-extra' names its method 'owl', which ffp."),
        (
            CLASS.format(name="extra", more="citation = '-'").replace("def allocate", "def answer"),
            "package 'ffp-extra': extra:Method is no complete Heuristic or Search.",
        ),
    ],
)
def test_a_broken_package_is_named_in_one_line(tmp_path, source, message):
    install(tmp_path, "ffp-extra", "extra = extra:Method", source)
    line = python("from ffp.allocators import METHODS; print(list(METHODS))", tmp_path)
    assert message in line and "\n" not in line
