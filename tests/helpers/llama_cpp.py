"""llama.cpp on a GGUF file, by the package xllamacpp: its tokens, and its log-probabilities of all tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt
import xllamacpp


class LlamaCpp:
    """A loaded file. Use it in a with statement."""

    def __init__(self, file: Path, *, context: int = 256, exact: bool = True):
        """exact: keep keys and values in float32, and compute attention without llama.cpp's fused kernel."""
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.verbosity = 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        if exact:
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server: Any = xllamacpp.Server(parameters)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text, special tokens in it read as such; special: with those that are added to a text."""
        body = {"content": text, "add_special": special, "parse_special": True}
        return list(self._post("/tokenize", body)["tokens"])

    def detokenize(self, ids: list[int]) -> str:
        """The text of tokens."""
        return str(self._post("/detokenize", {"tokens": ids})["content"])

    def template(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the file's chat template writes it, the start of an answer included."""
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def log_probs(self, ids: list[int], vocabulary: int, *, first: int = 0) -> npt.NDArray[np.float64]:
        """Log-probabilities of the token after ids[: i + 1], for i from `first`: (len(ids) - first, vocabulary)."""
        found = np.full((len(ids) - first, vocabulary), np.nan)
        # The probabilities of an answer that ends within a character are withheld; so the answer is a letter.
        settings = {"max_tokens": 1, "logprobs": vocabulary, "logit_bias": [[self.tokenize("a")[-1], 10000.0]]}
        for row, end in enumerate(range(first + 1, len(ids) + 1)):
            (place,) = self._server.handle_completions({"prompt": ids[:end], **settings})["choices"][0]["logprobs"][
                "content"
            ]
            for one in place["top_logprobs"]:
                found[row, one["id"]] = one["logprob"]
        return found

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(
            f"{self._server.listening_address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))
