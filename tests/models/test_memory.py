"""Calibration and ridge compensation of a larger random model under a hard limit of private memory."""

import json
import os
import subprocess
import sys

import pytest

# Runs on its own: a tiny model first, so that libraries are loaded and threads started, then the limit, then the model.
SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np, torch
from ffp.measure.calibration import collect
from ffp.config import ModelConfig
from ffp.core import projection
from ffp.models.checkpoint import load_model
from ffp.models.prunable import PrunableModel
from ffp.pruning.compensation import compensate
from ffp.pruning.structured import kept_units

def prune(folder, offload):
    source = {"kind": "local", "path": folder}
    model = load_model(Path(folder), ModelConfig(title="M", source=source, device="cpu", offload=offload))
    prunable, windows = PrunableModel(model), torch.randint(3, 200, (4, 64), generator=torch.Generator().manual_seed(0))
    problem = prunable.problem(0.3)
    allocation = projection.project_shares(problem, np.full(len(problem.decisions), 0.7))
    orders = collect(prunable, windows, batch_tokens=128).unit_orders("wanda")
    return compensate(prunable, kept_units(problem, allocation, orders), windows, kind="ridge", batch_tokens=128)

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

tiny, folder, offload, allowed = sys.argv[1:]
torch.set_num_threads(1)
prune(tiny, True)
limit = private() + int(allowed)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
updates = prune(folder, offload == "True")
print(json.dumps(sum(t.numel() * t.element_size() for t in updates.values())))
"""
HIDDEN, CHANNELS, BLOCKS = 1024, 2752, 6
BLOCK_BYTES = 4 * (4 * HIDDEN**2 + 3 * HIDDEN * CHANNELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny and a larger random LLaMA."""
    import transformers

    root = tmp_path_factory.mktemp("models")
    for name, hidden, channels, blocks in (("tiny", 64, 128, 2), ("larger", HIDDEN, CHANNELS, BLOCKS)):
        config = transformers.LlamaConfig(
            vocab_size=200, hidden_size=hidden, intermediate_size=channels, num_hidden_layers=blocks,
            num_attention_heads=16, max_position_embeddings=128,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(root / name)
    return root


def run(folders, offload, allowed):
    """A run under the limit; allowed: bytes, mapped weights included, above what the libraries take."""
    # What is freed goes back at once, in malloc and in MKL: the limit is on what the steps hold, not on what they held.
    allocators = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MKL_DISABLE_FAST_MM": "1"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **allocators}
    words = [str(folders / "tiny"), str(folders / "larger"), str(offload), str(int(allowed))]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("offload", [True, pytest.param(False, marks=pytest.mark.long)])
def test_one_dense_copy_and_one_and_a_half_blocks_suffice(folders, offload):
    """Beside the weights and the new parameters themselves; all moment matrices together would not fit."""
    dense = (folders / "larger/model.safetensors").stat().st_size
    kept = 0.7
    result = 4 * kept * BLOCKS * HIDDEN * (HIDDEN + CHANNELS)
    everything = 8 * kept**2 * BLOCKS * (HIDDEN**2 + CHANNELS**2)
    assert everything > 2 * BLOCK_BYTES
    done = run(folders, offload, dense + result + 1.5 * BLOCK_BYTES)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx(result, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_lower_limit_is_exceeded(folders):
    dense = (folders / "larger/model.safetensors").stat().st_size
    done = run(folders, True, dense + 0.5 * BLOCK_BYTES)
    assert done.returncode != 0
    assert "memory" in done.stderr
