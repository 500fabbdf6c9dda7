"""Programs in the place of Slurm's, which write down what the plug-in gives to them."""

from __future__ import annotations

from pathlib import Path

SBATCH = """#!/bin/bash
printf '%s\\0' "$@" > "$SAID/$$"
exit 1
"""


def writing_down(folder: Path, **others: str) -> tuple[Path, Path]:
    """Folders with programs in the place of Slurm's, and with the words of each `sbatch`, which refuses its job.

    others: shell commands of further programs, by name.
    """
    programs, said = folder / "programs", folder / "said"
    programs.mkdir(), said.mkdir()
    answers = {"sbatch": SBATCH, "sacctmgr": "#!/bin/sh\necho it.is=+me\n", "sinfo": "#!/bin/sh\necho 'gpu*'\n"}
    answers |= {name: f"#!/bin/sh\n{command}\n" for name, command in others.items()}
    for name in ("sbatch", "sacctmgr", "sshare", "sinfo", "squeue", "sacct", "scancel"):
        (programs / name).write_text(answers.get(name, "#!/bin/sh\n"))
        (programs / name).chmod(0o755)
    return programs, said
