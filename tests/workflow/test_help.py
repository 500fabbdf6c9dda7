"""What `--help` shows in a narrow terminal."""

from __future__ import annotations

import pytest
import typer.main

from ffp.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_whole_at_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        app([command, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "--help" in shown
    assert "…" not in shown
