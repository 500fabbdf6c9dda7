"""Fixtures that several kinds of tests share."""

import sys

import pytest


@pytest.fixture
def hub_modules(monkeypatch, tmp_path):
    """Keep the modelling files that transformers copies and imports out of the user's cache."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
