"""The published grid: Snakemake plans the jobs that `ffp validate` counts, without any weights."""

import re
import subprocess
import sys
from pathlib import Path

from ffp.config import Experiment
from ffp.pipeline import plan

ROOT = Path(__file__).parents[2]


def test_a_dry_run_has_the_jobs_that_validate_counts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--snakefile", str(ROOT / "Snakefile"),
         "--config", f"grid={ROOT / 'config/grids/paper.yaml'}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = (done.stdout + done.stderr).split("Job stats:")[1].split("total")[0]
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    counted = {step: 0 for step in ("asset", "preflight", "calibrate", "allocate", "apply", "evaluate")}
    experiment = Experiment(ROOT / "config/grids/paper.yaml")
    for name in experiment.grid.models:
        for step, count in plan.plan_model(experiment, name).jobs.items():
            counted[step] += count
    counted["asset"] += 2  # the text and the tasks
    assert counted == {step: sum(n for rule, n in counts.items() if rule.split("_")[0] == step) for step in counted}
