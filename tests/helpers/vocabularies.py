"""Small tokenizers of the kinds that models have, trained on the standard library's docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ffp.models.formats.gguf_tokenizer import PRE_TOKENIZERS
from tests.helpers.tiny import documents

SIZE = 1500
TEXTS = (
    "Hello, world!",
    "def f(x):\n    return {'a': 1, \"b\": [x, 20, 300]}  # 3.14159e-10\n\n\n\tif x:\r\n\t\tpass\n",
    "1 22 333 4444 55555 1,234,567.89 0x1F a1b2 ½ ² ٣٤",
    "  two   three    \n\n  \n   end  ",
    "I'm, you're, IT'S, we'VE, they'll; don't",
    "Größe, façade, Ελληνικά, русский, 日本語のテキスト, 한국어, עברית, العربية, हिन्दी, ไทย",
    "emoji 😀👍🏽 👨‍👩‍👧, math ∑∂√, arrows →⇒, quotes “a” „b\u2019 \u2013 — …",
    "zero\u200bwidth, no-break\u00a0space, ideographic\u3000space, \u2028 line",
    "a\tb\vc\fd \x01\x7f",
    "",
    " ",
    "\n",
    "<|begin|>a text<|end|> b<|begin|>",
)


def byte_level(pre: str, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the steps that llama.cpp calls `pre`; bos: put <|begin|> before a text.

    Its merges cross words, numbers and lines, so that other steps would show.
    """
    (steps, ignore_merges) = next(key for key, name in PRE_TOKENIZERS.items() if name == pre)
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer = _step("bytes")
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 10, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    core.train_from_iterator([text[i : i + 40] for text in _texts() for i in range(0, len(text), 40)], trainer)
    core.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in steps])
    return _finish(core, bos=bos)


def sentencepiece(scheme: str, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as transformers makes it of SentencePiece's; scheme: "prepend" or Metaspace's."""
    core = Tokenizer(models.BPE())
    core.normalizer = _prepend()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 266, limit_alphabet=120)
    core.train_from_iterator((word for text in _texts() for word in text.split(" ")), trainer)
    ranks = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *ranks]
    vocab = {name: number for number, name in enumerate(names)}
    merges = [
        (token[:cut], token[cut:])
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend":
        core.normalizer = _prepend()
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(core, bos=bos, unk_token="<unk>")


def _finish(core: Tokenizer, *, bos: bool, **names: Any) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<|begin|>", "<|end|>")])
    core.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if bos:
        begin = ("<|begin|>", core.token_to_id("<|begin|>"))
        core.post_processor = processors.TemplateProcessing("<|begin|> $A", "<|begin|> $A $B", [begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>", **names
    )


def _step(step: str) -> Any:
    known = {
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "bytes with words": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Digits(individual_digits=True),
    }
    return known.get(step) or pre_tokenizers.Split(Regex(step), "isolated")


def _prepend() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _texts() -> Sequence[str]:
    return [*(document["text"][:8000] for document in documents()), *TEXTS * 20]
