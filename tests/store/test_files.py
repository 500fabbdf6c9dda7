"""Files of tensors: the same bytes for the same content, whatever process writes them."""

import subprocess
import sys

import numpy as np
import pytest

from ffp.core.errors import FfpError
from ffp.store.files import check_new_folder, read_tensors, sha256, whole, whole_folder, write_tensors

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


def fill(path, text, *, overwrite=False):
    with whole_folder(path, overwrite=overwrite) as made:
        (made / "ffp.json").write_text(text)


def test_a_folder_is_made_and_replaced_where_links_lead(tmp_path):
    big, link, far = tmp_path / "big", tmp_path / "small", tmp_path / "far"
    big.mkdir()
    far.symlink_to(link)
    link.symlink_to("big/llama")
    for text in ("first", "second", "third"):
        check_new_folder(far, overwrite=text != "first")
        fill(far, text, overwrite=text != "first")
        assert (big / "llama/ffp.json").read_text() == text
        assert link.is_symlink() and far.is_symlink() and not (big / "llama").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"big", "small", "far"}
    assert [path.name for path in big.iterdir()] == ["llama"]
    with pytest.raises(FfpError, match="exists and is not overwritten"):
        fill(far, "fourth")


def test_a_file_below_a_link_to_a_folder_that_is_not_there_yet_is_made_in_it(tmp_path):
    (tmp_path / "results").symlink_to(tmp_path / "big")
    with whole(tmp_path / "results/cells/a.json") as made:
        made.write_text("a")
    assert (tmp_path / "big/cells/a.json").read_text() == "a" and (tmp_path / "results").is_symlink()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("target", "below", "why"),
    [
        ("absent/llama", "", "there is no folder .*/absent"),
        ("absent/llama", "x", "there is no folder .*/absent"),
        ("link", "", "it leads to itself"),
    ],
)
def test_a_link_that_leads_nowhere_is_refused_before_anything_is_made(tmp_path, target, below, why):
    (tmp_path / "link").symlink_to(target)
    for act in (lambda path: check_new_folder(path, overwrite=True), lambda path: fill(path, "x")):
        with pytest.raises(FfpError, match=rf"link is a link to {target}, which cannot be made: {why}\. Make that"):
            act(tmp_path / "link" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.fault
@pytest.mark.parametrize("library", ["safetensors", "numpy"])
def test_a_full_disk_is_one_line_whatever_the_library_makes_of_it(library, tmp_path):
    """safetensors raises an error of its own, numpy an OSError that says nothing else than its text."""
    save = {"safetensors": "save_file({'x': x}, folder / 'x')", "numpy": "x.tofile(folder / 'x')"}[library]
    code = f"""
import resource, signal, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from ffp.core.errors import FfpError
from ffp.store.files import whole_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
x = np.ones(1 << 20)
try:
    with whole_folder(Path({str(tmp_path / "out")!r})) as folder:
        {save}
except FfpError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'out'}: ") and ": None." not in done.stdout
    assert done.stdout.count("\n") == 1 and not list(tmp_path.iterdir())
