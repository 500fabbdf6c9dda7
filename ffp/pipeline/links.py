"""Files that other names share: DVC's cache can be one file with the workspace, by a hard or symbolic link.

ffp writes files whole and renames them, and Snakemake removes outputs before a job, so that neither writes into a
linked file. But logs, benchmarks and Snakemake's records are written into the files that are there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ffp.pipeline.locks import STATE
from ffp.store.layout import LOGS

WRITTEN_IN_PLACE = (LOGS, STATE / "metadata")


def unlink_from_cache(folder: Path = Path()) -> None:
    """Makes the files that are written in place files of their own, in a folder that DVC is used in.

    Args:
        folder: Where the workflow runs.
    """
    if not (folder / ".dvc").is_dir():
        return
    for part in WRITTEN_IN_PLACE:
        for parent, _, names in os.walk(folder / part):
            for path in (Path(parent, name) for name in names):
                if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
                    _own(path)


def _own(path: Path) -> None:
    """Replaces a link to a file by a copy that its owner may write to."""
    copy = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.copyfile(path, copy)
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
