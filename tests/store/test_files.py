"""Files of tensors: the same bytes for the same content, whatever process writes them."""

import subprocess
import sys

import numpy as np
import pytest

from ffp.store.files import read_tensors, sha256, write_tensors

TENSORS = {"b.ü": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.ones(3)}
META = {"seed": 0, "note": 'ü "quoted" \\'}


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    """safetensors orders metadata by a hash that differs from process to process."""
    digests = set()
    for number in range(4):
        path = tmp_path / f"{number}.safetensors"
        code = f"from tests.store import test_files as t; t.write_tensors({str(path)!r}, 's', t.TENSORS, t.META)"
        subprocess.run([sys.executable, "-c", code], check=True)
        digests.add(sha256(path))
    assert len(digests) == 1


def test_tensors_come_back_as_they_were_written(tmp_path):
    write_tensors(tmp_path / "x.safetensors", "s", TENSORS, META)
    tensors, meta = read_tensors(tmp_path / "x.safetensors", "s", sealed=True)
    assert meta == META
    assert {name: array.tolist() for name, array in tensors.items()} == {k: v.tolist() for k, v in TENSORS.items()}


def test_a_file_that_memory_is_too_small_for_is_not_called_damaged(tmp_path, monkeypatch):
    """Who deletes it as damaged would lose a sound file."""
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: np.empty(1 << 50))
    with pytest.raises(MemoryError):
        read_tensors(tmp_path / "grams.safetensors", "tag")
