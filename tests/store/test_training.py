"""The state of a training on disk: the last one, whole, of this training alone; and what it leaves in the scores."""

from __future__ import annotations

import numpy as np

from ffp.store.schemas import ScoresFile
from ffp.store.training import FileTraining
from tests.store.test_schemas import BODIES, PPL, make

STATE = {"curve": np.zeros((2, 4)), "a.A": np.arange(3, dtype=np.float32)}


def test_the_last_state_is_read_back_and_removed_at_the_end(tmp_path):
    file = FileTraining(tmp_path / "cell" / "state.safetensors", {"rank": 4})
    assert file.load() is None
    file.save({**STATE, "a.A": np.zeros(3, dtype=np.float32)})
    file.save(STATE)
    found = FileTraining(file.path, {"rank": 4}).load()
    assert found.keys() == STATE.keys()
    assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in STATE.items())
    file.remove()
    assert not file.path.exists() and file.load() is None


def test_a_state_of_another_training_or_a_damaged_one_counts_for_nothing(tmp_path):
    file = FileTraining(tmp_path / "state.safetensors", {"rank": 4})
    file.save(STATE)
    assert FileTraining(file.path, {"rank": 5}).load() is None
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    assert file.load() is None
    file.path.write_bytes(b"")
    assert file.load() is None


def test_scores_name_a_perplexity_before_recovery_only_where_there_is_one(tmp_path):
    make(ScoresFile).write(tmp_path / "plain.json")
    assert "ppl_before" not in (tmp_path / "plain.json").read_text()
    trained = ScoresFile(**{**BODIES[ScoresFile], "ppl_before": PPL, "provenance": make(ScoresFile).provenance})
    trained.write(tmp_path / "trained.json")
    assert ScoresFile.read(tmp_path / "trained.json", sealed=True) == trained
