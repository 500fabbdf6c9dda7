"""What benchmarks.latency measures in llama.cpp, on tiny models."""

from benchmarks import llama_cpp
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from tests.helpers.families import tiny, tokens
from tests.helpers.vocabularies import SIZE, byte_level


def test_each_type_and_variant_is_compared_with_the_dense_model(tmp_path):
    changes = {"vocab_size": SIZE, "hidden_size": 256, "intermediate_size": 128, "num_attention_heads": 8}
    dense, pruned = (PrunableModel(tiny("llama", **changes)) for _ in range(2))
    cut(pruned, {m.decision.name: range(m.decision.n_units * 5 // 9) for m in pruned.modules})
    tokenizer = byte_level("gpt-2")
    files = llama_cpp.write_files(dense, tokenizer, tmp_path, llama_cpp.DENSE, pad=1)
    for variant, pad in (("unpadded", 1), ("padded", 32)):
        files += llama_cpp.write_files(pruned, tokenizer, tmp_path, variant, pad=pad)
    marks, seconds = llama_cpp.measure(files, tokens(1, 9)[0].tolist(), steps=3, rounds=2, threads=1)
    for name in ("gguf_prompt_speedup", "gguf_decode_speedup", "gguf_bytes_over_dense"):
        assert set(marks[name]) == {"F16", "Q8_0", "Q4_0"}
        assert all(set(found) == {"unpadded", "padded"} and min(found.values()) > 0 for found in marks[name].values())
    assert all(share < 1 for found in marks["gguf_bytes_over_dense"].values() for share in found.values())
    assert {tuple(found) for found in seconds.values()} == {("prompt_s", "decode_s")}
