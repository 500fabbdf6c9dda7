"""What Slurm answers where it takes no job, found in Snakemake's output."""

from __future__ import annotations

import pytest

from ffp.pipeline.cluster import submission_error

NOBODY = """Exception in run_job for rule site_search: The 'sacctmgr' reported: 'Unable to test the account 'default':
sacctmgr: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sacctmgr: error: fetch_config: DNS SRV lookup failed
sacctmgr: fatal: Could not establish a configuration source
.'.
Error in rule site_search:
    message: Job submission failed with exception: ...
"""
REFUSED = "SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed: Invalid qos'."


@pytest.mark.parametrize(
    "said, reason",
    [
        (NOBODY, "Slurm does not answer: Could not establish a configuration source"),
        (REFUSED, "Invalid qos"),
        ("SLURM sbatch failed. The error message was ''.", "sbatch failed and gave no reason"),
        (
            "sinfo: error: Unable to contact slurm controller",
            "Slurm does not answer: Unable to contact slurm controller",
        ),
        ("Error in rule calibrate:\n    message: none\n", ""),
    ],
)
def test_the_reason_is_slurms_own(said, reason):
    assert submission_error(said) == reason
