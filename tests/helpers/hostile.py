"""Values that nobody should trust, and a shell that shows what a line would run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

VALUES = {
    "a script": "<script>owned=1</script>",
    "an element with a handler": '"><img src=x onerror="owned=1">',
    "an address that runs": "[a](javascript:owned=1) ![b](https://example.org/seen.png) <https://example.org>",
    "a LaTeX command": r"\input{/etc/passwd}\write18{touch owned} $x_1^{2}$ % & ~",
    "LaTeX behind a line break": "a\n\\input{/etc/passwd}\r\\owned",
    "a substitution": "$(touch owned)",
    "backquotes": "a```\n`touch owned`",
    "further commands": "a; touch owned & touch owned | touch owned\ntouch owned #",
    "single quotes": "it's '; touch owned; '",
    "double quotes": '"; touch owned; "',
    "an escaped end": "\\'; touch owned; \\",
    "a variable": "$HOME ${IFS}!!",
    "a path upwards": "../../../owned",
    "an option": "--help",
    "a short option": "-rf",
    "an escape sequence": "a\x1b[2J\x1b]0;owned\x07\x08b",
    "a turn to the left": "a\u202egnp.exe\u2066\u200fb",
    "letters of other scripts": "שלום 模型 модель é 😀",
    "braces": "{x} {{y}} {0} %(z)s {self.__class__}",
    "a template": "{{ 7 * 7 }}{% raw %}{# owned #}{{ cycler.__init__.__globals__ }}",
    "a formula": "=cmd|' /C touch owned'!A0",
    "a formula behind a sign": "+1+cmd|' /C touch owned'!A0",
    "a formula behind an at": "@SUM(1+1)*cmd|' /C touch owned'!A0",
    "YAML": "a\n---\nlicense: owned\n!!python/object/apply:os.system [touch owned]",
    "Markdown": "a\n# owned\n| b | c |\n|---|---|\n- **d** ~~e~~ &lt;b&gt;",
    "a long word": "a" * 20_000,
    "long words": "owned " * 4_000,
}
NULL = "a\0b"  # neither an argument nor a file's name can hold it


def recorded(line: str, folder: Path) -> list[list[str]]:
    """Pastes a line into bash in an empty folder where `ffp` and `snakemake` only write down their words.

    Returns the words of each call; nothing else may have left a file.
    """
    programs, here, calls = (folder / name for name in ("programs", "here", "calls"))
    for path in (programs, here, calls):
        path.mkdir(parents=True)
    for name in ("ffp", "snakemake"):
        (programs / name).write_text(f"#!/bin/bash\nprintf '%s\\0' {name} \"$@\" > '{calls}'/$$\n")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=line.encode(), cwd=here, env=environment, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list(here.iterdir()), "the line ran something else"
    return [path.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1] for path in sorted(calls.iterdir())]
