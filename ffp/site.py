"""Where the workflow runs: what a site must offer is checked before the first job."""

from __future__ import annotations

import shutil

from ffp.types import ConfigError


def check(executor: str) -> None:
    """ConfigError where the profile hands jobs to a Slurm that this machine cannot reach."""
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "profile slurm needs Slurm, but this machine has no sbatch. Run on a node from which jobs can be "
            "submitted, or run here with --profile profiles/local."
        )
