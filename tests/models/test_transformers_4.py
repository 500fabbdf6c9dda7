"""Checkpoints in transformers 4.57, in a folder of its own: the same logits, tokens and token ids as in version 5."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ffp.models.formats import DenseShape, Transformers
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from tests.helpers.families import CONFIGS, pruned, tiny, tokenizer, tokens

PACKAGES = ("transformers==4.57.6", "huggingface-hub==0.36.0", "tokenizers==0.22.1")
SCRIPT = """
import json, sys
import numpy as np, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

assert transformers.__version__.startswith("4.57"), transformers.__version__
for folder in sys.argv[1:]:
    # version 4 leaves out the soft caps of Gemma 2 where it computes attention by sdpa, its default
    words = {"trust_remote_code": True, "dtype": "auto", "attn_implementation": "eager" if "gemma2" in folder else None}
    model = AutoModelForCausalLM.from_pretrained(folder, **words)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.from_numpy(np.load(folder + "/ids.npy"))
    with torch.no_grad():
        logits = model(ids).logits
    greedy = {"max_new_tokens": 5, "do_sample": False}
    answers = [model.generate(ids[:1], **greedy, **more).tolist() for more in ({}, {"cache_implementation": "static"})]
    model.save_pretrained(folder + "-again")  # version 4 keeps one modelling file for each name of a folder
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", **words)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
    np.save(folder + "/logits4.npy", logits.numpy())
    json.dump({"answers": answers, "text": tokenizer("a b,c").input_ids}, open(folder + "/answers4.json", "w"))
"""

FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0] * 4}
# Rotary embeddings that are scaled, as each family's configuration of version 4 says it.
SCALED = {
    "llama": {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }},
    "gemma3_text": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "olmo3": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}},
    "phi3": {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 32},
}  # fmt: skip


@pytest.fixture(scope="session")
def version_4(tmp_path_factory):
    """An environment in which Python finds transformers 4.57 first, and the other packages as here."""
    folder = tmp_path_factory.mktemp("transformers-4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    modules = str(tmp_path_factory.mktemp("modules"))
    return {**os.environ, "PYTHONPATH": str(folder), "HF_MODULES_CACHE": modules, "OMP_NUM_THREADS": "1"}


def models():
    """(name, model, format): every family with unequal blocks, and LLaMA in the other forms."""
    for family in CONFIGS:
        if family not in ("gpt_neox", "stablelm"):  # another name of the output layer, attention of a fixed width
            yield family, pruned(family), Transformers()
    for family, scaling in SCALED.items():
        yield f"{family}-scaled", PrunableModel(tiny(family, **scaling)), Transformers()
    equal = PrunableModel(tiny("qwen3"))
    cut(equal, {m.decision.name: range(1 if m.kind == "attention" else 24) for m in equal.modules})
    yield "stock", equal, Transformers()
    heads = PrunableModel(tiny("llama"), attention_units="query-heads")
    kept = iter(([0, 1, 3, 5], [2, 4], range(6)))
    cut(heads, {m.decision.name: next(kept) if m.kind == "attention" else range(33) for m in heads.modules})
    yield "query-heads", heads, Transformers()
    kinds = ["sliding_attention", "full_attention"] * 2
    mixed = PrunableModel(tiny("gemma3_text", num_hidden_layers=4, layer_types=kinds), min_keep=0)
    cut(mixed, {m.decision.name: range(0 if "1.att" in m.decision.name else m.n_indices) for m in mixed.modules})
    yield "without-first-full-attention", mixed, Transformers()
    yield "zeros", PrunableModel(tiny("llama")), DenseShape()


@pytest.mark.slow
def test_version_4_gives_the_same_logits_and_tokens(version_4, tmp_path):
    found = {}
    for name, prunable, format in models():
        (folder := tmp_path / name).mkdir()
        prunable.model.generation_config.eos_token_id = None
        format.save(prunable, tokenizer(), folder)
        np.save(folder / "ids.npy", tokens().numpy())
        found[folder] = prunable.model
    folders = [str(folder) for folder in found]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *folders], env=version_4, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, model in found.items():
        answers = json.loads((folder / "answers4.json").read_text())
        with torch.no_grad():
            expected = model(tokens()).logits
        logits = torch.from_numpy(np.load(folder / "logits4.npy"))
        torch.testing.assert_close(
            logits, expected, rtol=1e-6, atol=1e-6, msg=lambda text, f=folder: f"{f.name}: {text}"
        )
        ours = model.generate(tokens()[:1], max_new_tokens=5, do_sample=False).tolist()
        assert answers["answers"] == [ours, ours], folder.name
        assert answers["text"] == tokenizer()("a b,c").input_ids


@pytest.mark.slow
def test_what_version_4_cannot_read_is_refused_there(version_4, tmp_path):
    Transformers().save(pruned("gpt_neox"), tokenizer(), tmp_path)
    np.save(tmp_path / "ids.npy", tokens().numpy())
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=version_4, capture_output=True, text=True)
    assert done.returncode and "Install transformers>=5" in done.stderr.splitlines()[-1]
