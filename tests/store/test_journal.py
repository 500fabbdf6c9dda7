"""The journal of a search: what was measured is found again, and nothing else."""

from __future__ import annotations

import pytest

from ffp.core.errors import FfpError
from ffp.store.journal import FileJournal, measurements


def test_measurements_are_found_again_by_the_next_attempt(tmp_path):
    path = tmp_path / "cell" / "journal.txt"
    FileJournal(path, "a").add("search:1", [0.5], 2.0, tokens=64)
    assert FileJournal(path, "a").find("search:1") == {"key": "search:1", "values": [0.5], "s": 2.0, "tokens": 64}
    assert [line["tokens"] for line in measurements(path)] == [64]


def test_a_journal_of_other_settings_is_discarded(tmp_path):
    FileJournal(tmp_path / "journal.txt", "a").add("search:1", [0.5], 2.0, tokens=64)
    assert FileJournal(tmp_path / "journal.txt", "b").find("search:1") is None


def test_a_line_that_was_cut_off_is_dropped_and_the_rest_is_kept(tmp_path):
    journal = FileJournal(tmp_path / "journal.txt", "a")
    journal.add("search:1", [0.5], 2.0, tokens=64)
    journal.add("search:2", [0.25], 2.0, tokens=64)
    text = journal.path.read_text()
    journal.path.write_text(text[:-5])
    again = FileJournal(journal.path, "a")
    assert again.find("search:1") and again.find("search:2") is None


def test_opening_a_whole_journal_writes_nothing(tmp_path):
    path = tmp_path / "journal.txt"
    FileJournal(path, "a").add("search:1", [0.5], 2.0, tokens=64)
    before = path.stat()
    assert FileJournal(path, "a").find("search:1")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.fault
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FfpError, match=r"cannot write .*journal.txt.*Free the disk"):
        FileJournal(tmp_path / "file" / "journal.txt", "a").add("search:1", [0.5], 2.0, tokens=64)


def test_nothing_is_written_before_the_first_measurement(tmp_path):
    FileJournal(tmp_path / "journal.txt", "a").remove()
    assert not list(tmp_path.iterdir())
