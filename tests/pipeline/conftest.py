"""A tiny model and texts, in memory and as files, on which models are pruned."""

import logging
import shutil

import pytest

from tests.helpers import tiny


@pytest.fixture(scope="session")
def texts():
    """Documents as strings."""
    return [document["text"] for document in tiny.documents()]


@pytest.fixture
def loaded(tiny_source):
    """A fresh tiny model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_source / "source"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def folder(tiny_source, tmp_path, monkeypatch):
    """A folder with a model and documents, and a configuration that names both; the current one."""
    shutil.copytree(tiny_source, tmp_path, dirs_exist_ok=True)
    tiny.configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # pytest's own handlers stay
    return tmp_path
