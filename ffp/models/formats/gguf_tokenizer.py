"""The tokenizer of a transformers model as GGUF describes it.

llama.cpp tokenises by code of its own: for byte-level BPE by the name of a pre-tokenizer, for BPE with byte fallback
(SentencePiece's) by the tokens' scores. So only those tokenizers are written whose every part is known to do the same
there; others are refused. What llama.cpp still does in its own way:

- It normalises no text (NFC, as Qwen has it): text that is not in that form gives other tokens.
- With SentencePiece's tokenizers it puts a space before a text, and before what follows a special token, even if a
  space is there. transformers' Metaspace does not, and with the prepend scheme "first" only before the text.
- It knows nothing of added tokens that take the spaces beside them, or that have to be whole words.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ffp.core.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# By the steps of a byte-level pre-tokenizer and whether merges are ignored for words of the vocabulary.
PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("bytes with words",), False): "gpt-2",
    (("digits", "bytes with words"), False): "smollm",
    ((_WORDS + r"\p{N}{1,3}" + _REST, "bytes"), True): "llama-bpe",
    ((_WORDS + r"\p{N}{1,3}" + _REST, "bytes"), False): "smaug-bpe",
    ((_WORDS + r"\p{N}" + _REST, "bytes"), False): "qwen2",
}
LLAMA_STEPS = {  # what comes before BPE with byte fallback -> whether a space is put before the text
    ("prepend", "replace"): True,
    ("replace",): False,
    ("metaspace always",): True,
    ("metaspace first",): True,
    ("metaspace never",): False,
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and how a text becomes tokens, in GGUF's terms.

    Attributes:
        model: "gpt2" or "llama".
        tokens: By id.
        types: GGUF's token type by id.
        pre: Name of the pre-tokenizer, for "gpt2".
        merges: Pairs that are merged, the first one first, for "gpt2".
        scores: By id; a pair is merged sooner if its result has a higher score. For "llama".
        space_prefix: Whether a space is put before the text.
        ids: Ids of special tokens by their role, e.g. "bos".
        adds: Whether "bos" and "eos" are added to a text.
        chat_template: None, a template or named templates.
    """

    model: str
    tokens: list[str]
    types: list[int]
    pre: str
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    ids: dict[str, int]
    adds: dict[str, bool]
    chat_template: Any = field(repr=False)

    def write(self, writer: GGUFWriter) -> None:
        """Adds the keys `tokenizer.*` to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        if self.model == "llama":
            writer.add_add_space_prefix(self.space_prefix)
        for role, number in self.ids.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if isinstance(self.chat_template, Mapping):
            writer.add_chat_template([{"name": k, "template": v} for k, v in self.chat_template.items()])
        elif self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Returns a tokenizer in GGUF's terms.

    Args:
        tokenizer: One that has a tokenizer.json.
        size: Rows of the embedding; ids without a token become unused ones.

    Raises:
        ConfigError: llama.cpp would make other tokens of a text, or cannot hold the tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(f"{type(tokenizer).__name__} has no tokenizer.json")
    body = json.loads(backend.to_str())
    model = body["model"]
    if model["type"] != "BPE":
        raise _refusal(f"its model is {model['type']}, not BPE")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("its BPE marks the parts of words")
    ids = _special_ids(tokenizer, model.get("unk_token"))
    tokens, types = _tokens(body, size, unknown=ids.get("unk") if model["byte_fallback"] else None)
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "ids": ids,
        "adds": _added(tokenizer),
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
    if model["byte_fallback"]:
        prefix = _space_prefix(body)
        special = {token["content"] for token in body["added_tokens"]}
        scores = _scores(model["vocab"], pairs, special, size)
        return Vocabulary("llama", pre="default", merges=[], scores=scores, space_prefix=prefix, **common)
    pre, merges = _pre_tokenizer(body), [f"{left} {right}" for left, right in pairs]
    return Vocabulary("gpt2", pre=pre, merges=merges, scores=[], space_prefix=False, **common)


def _refusal(reason: str) -> ConfigError:
    return ConfigError(
        f"the tokenizer cannot be written as GGUF: {reason}. Use --format transformers, or --format dense-shape and "
        "llama.cpp's own converter."
    )


def _tokens(body: Mapping[str, Any], size: int, *, unknown: int | None) -> tuple[list[str], list[int]]:
    """Tokens and types by id; unknown: the token that has a type of its own."""
    from gguf import TokenType

    names = [f"[PAD{number}]" for number in range(size)]
    types: list[int] = [TokenType.UNUSED] * size
    model = body["model"]
    highest = max([*model["vocab"].values(), *(token["id"] for token in body["added_tokens"])])
    if highest >= size:
        raise _refusal(f"it has a token of id {highest}, but the model's embedding has {size} rows")
    for name, number in model["vocab"].items():
        is_byte = model["byte_fallback"] and len(name) == 6 and name.startswith("<0x") and name.endswith(">")
        names[number], types[number] = name, TokenType.BYTE if is_byte else TokenType.NORMAL
    for token in body["added_tokens"]:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        names[token["id"]], types[token["id"]] = token["content"], kind
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return names, types


def _special_ids(tokenizer: PreTrainedTokenizerBase, unknown: str | None) -> dict[str, int]:
    """Ids of special tokens by role."""
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    if found["unk"] is None and unknown is not None:
        found["unk"] = tokenizer.convert_tokens_to_ids(unknown)
    return {role: int(number) for role, number in found.items() if number is not None}


def _added(tokenizer: Any) -> dict[str, bool]:
    """Whether "bos" and "eos" are put around a text."""
    plain, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for found in ({"bos": b, "eos": e} for b in (False, True) for e in (False, True)):
        if whole == [bos] * found["bos"] + plain + [eos] * found["eos"]:
            return found
    raise _refusal("it adds other tokens to a text than BOS and EOS")


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in their order."""
    if part is None:
        return []
    return [step for each in part[key] for step in _steps(each, key)] if part["type"] == "Sequence" else [part]


def _pre_tokenizer(body: Mapping[str, Any]) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer."""
    normal = [step["type"] for step in _steps(body["normalizer"], "normalizers")]
    if normal not in ([], ["NFC"]):
        raise _refusal(f"llama.cpp has no normalizer {normal[0]}")
    steps = _steps(body["pre_tokenizer"], "pretokenizers")
    named = tuple(_step_name(step) for step in steps)
    pre = PRE_TOKENIZERS.get((named, bool(body["model"].get("ignore_merges"))))
    if pre is None:
        shown = ", ".join(named) or "none"
        raise _refusal(f"its pre-tokenizer is not known ({shown})")
    return pre


def _step_name(step: Mapping[str, Any]) -> str:
    """A step of a pre-tokenizer in a word, or as its regular expression."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return "bytes with words" if words else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return str(regex)
    return json.dumps(step)


def _space_prefix(body: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-like tokenizer puts a space before the text."""
    steps = [*_steps(body["normalizer"], "normalizers"), *_steps(body["pre_tokenizer"], "pretokenizers")]
    named = tuple(_llama_step(step) for step in steps)
    if named not in LLAMA_STEPS:
        raise _refusal(f"what it does before BPE is not known ({', '.join(named) or 'nothing'})")
    return LLAMA_STEPS[named]


def _llama_step(step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "Prepend", "prepend": "▁"}:
            return "prepend"
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            return "replace"
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
            return f"metaspace {scheme}"
    return json.dumps(step)


def _scores(
    vocab: Mapping[str, int], pairs: Sequence[tuple[str, ...]], special: Collection[str], size: int
) -> list[float]:
    """Scores by which llama.cpp merges the pairs in the tokenizer's order.

    llama.cpp merges any two neighbours whose text is a token, the one of the highest score first. That is the same only
    where the pairs are all of that kind, and those of one token follow each other.
    """
    known = set(pairs)
    for token in vocab.keys() - special:
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        missing = (half for half in halves if half not in known and half[0] in vocab and half[1] in vocab)
        if token[:3] != "<0x" and next(missing, None):
            raise _refusal(f"its merges do not make {token!r} of all its parts, as SentencePiece does")
    scores, last = [float(-len(pairs) - 1)] * size, ""
    seen: set[str] = set()
    for rank, pair in enumerate(pairs):
        token = "".join(pair)
        if token != last and token in seen:
            raise _refusal(f"the merges of {token!r} are not in one place, as SentencePiece has them")
        if token not in seen:
            scores[vocab[token]] = float(-rank)
        seen.add(token)
        last = token
    return scores
