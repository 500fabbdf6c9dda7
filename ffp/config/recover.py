"""How quality is won back after pruning: what a grid, `ffp prune` and `ffp.prune` may ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ffp.config.reading import Count, Strict

TUNED = "dense-lora"  # the dense model that is trained as pruned ones are: what the text alone is worth


class RecoverSettings(Strict):
    """Training after pruning, on documents of the calibration split that calibration did not use.

    LoRA (Hu et al., arXiv:2106.09685) trains two thin matrices beside every linear of the blocks. At the end their
    product is added to the weights, so that the model has the same form as before.
    """

    method: Literal["none", "lora"] = Field("lora", description="How: not at all, or by LoRA.")
    tokens: Count = Field(65_536, description="Tokens to train on; a shorter text is read again.")
    rank: Count = Field(16, description="Columns of the thin matrices.")
    alpha: float = Field(32.0, gt=0, description="Their product is multiplied by alpha / rank.")
    learning_rate: float = Field(5e-4, gt=0, lt=1, description="Highest learning rate of AdamW.")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises; it falls to 0 afterwards."
    )
    batch_tokens: Count = Field(2048, description="Tokens of one optimiser step, at least one window.")
    loss: Literal["ce", "kl"] = Field(
        "ce", description="Cross entropy of the text, or the KL divergence from the dense model, which is loaded too."
    )
    checkpoint: bool = Field(
        True,
        description="Compute a block's activations again in the backward pass instead of keeping those of all blocks: "
        "less memory, about a third more time.",
    )

    @property
    def wanted(self) -> bool:
        """Whether anything is trained."""
        return self.method != "none"

    def describe(self) -> str:
        """Returns the settings in a few words, for tables and cards."""
        goal = "the dense model's predictions" if self.loss == "kl" else "the text"
        return f"LoRA of rank {self.rank}, {self.tokens:,} tokens, fitted to {goal}"


class GridRecoverSettings(RecoverSettings):
    """The same for all methods of a grid that have no `recover` of their own."""

    dense: bool = Field(
        False,
        description="Also train the dense model on the same tokens, as the row dense-lora, which shows what the text "
        "alone is worth.",
    )


def _by_method(value: Any) -> Any:
    """Reads a method's name alone as settings with its defaults."""
    return {"method": value} if isinstance(value, str) else value


_Named = Literal["none", "lora"]
Recover = Annotated[RecoverSettings, BeforeValidator(_by_method, json_schema_input_type=_Named | RecoverSettings)]
GridRecover = Annotated[
    GridRecoverSettings, BeforeValidator(_by_method, json_schema_input_type=_Named | GridRecoverSettings)
]
NO_RECOVERY = RecoverSettings(method="none")
