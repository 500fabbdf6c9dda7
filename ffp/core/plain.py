"""Words from outside, made fit for where they are shown: a line, a shell, Markdown, a spreadsheet, a path."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from html import escape

# Single and double quotes, what a shell replaces inside double ones, and Snakemake's wildcards.
UNSAFE = "'\"`$\\{}<>"
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]|"})
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?")


def one_line(text: str) -> str:
    """Returns a text without control characters, each run of white space as a single space."""
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """Returns a text with a space for every character that moves a cursor or turns the direction of writing."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)


def markdown(text: str) -> str:
    """Returns a text as one line that Markdown and HTML show as it is: no markup, no link, no picture."""
    return escape(one_line(text), quote=False).translate(_MARKDOWN)


def shell_line(words: Iterable[object]) -> str:
    """Returns words as one line for bash or zsh, in which every word is what it was and can be seen."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: object) -> str:
    """A word in quotes where it needs them; one with control characters as $'...', so that a terminal shows them."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    plain = (character if character.isprintable() and character not in "\\'" else "" for character in text)
    return "$'" + "".join(same or _escaped(character) for same, character in zip(plain, text, strict=True)) + "'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def spreadsheet(value: object) -> object:
    """Returns a value for a CSV file; a text that a spreadsheet would take for a formula gets a ' in front."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def fault_of_path(path: object) -> str:
    """Returns what keeps a path out of a workflow, in words; "" if nothing does.

    Snakemake hands paths to shells of its own and to those of clusters, and not all of these quote.
    """
    text = str(path)
    if text.startswith("-"):
        return "begins with -, as an option does"
    odd = next((character for character in text if character in UNSAFE or not character.isprintable()), None)
    return f"has the character {odd!r}, which Snakemake or a shell takes for something else" if odd else ""


def duration(seconds: float) -> str:
    """Returns seconds in the unit that suits them: 42 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
