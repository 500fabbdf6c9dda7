"""Fixtures that several kinds of tests share."""

import sys

import pytest

from tests.workflow import tiny


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory):
    """A folder with the model and the text of the tiny grid."""
    folder = tmp_path_factory.mktemp("source")
    tiny.sources(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_grid(tmp_path_factory):
    """A folder in which the tiny real grid has run to its end; add to it, but leave its files as they are."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


@pytest.fixture
def hub_modules(monkeypatch, tmp_path):
    """Keep the modelling files that transformers copies and imports out of the user's cache."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
