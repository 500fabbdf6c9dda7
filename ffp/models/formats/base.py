"""What a format declares, is given and gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ffp.models.prunable import PrunableModel


@dataclass(frozen=True)
class Saved:
    """What was written, for the model card and the terminal.

    Attributes:
        text: What the folder holds and what runs it: a paragraph of Markdown.
        run: Lines of code that load and run it, with PATH for the folder.
        language: Language of `run`, as Markdown names it.
        tags: Tags of the hub for such a folder.
        library: Library that loads it, as the hub names it.
        notes: What the user should know of this very export, a line each.
    """

    text: str
    run: Sequence[str]
    language: str = "python"
    tags: Sequence[str] = ()
    library: str = "transformers"
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Format(ABC):
    """A way to write a pruned model. Fields of a subclass are its options.

    Attributes:
        name: Name on the command line.
        zeros: Whether removed units stay as zeros in tensors of the dense shapes.
    """

    name: ClassVar[str]
    zeros: ClassVar[bool] = False

    def check(self, prunable: PrunableModel, tokenizer: Any) -> None:  # noqa: B027
        """Refuses a model that this format cannot hold, before anything is pruned; sizes alone are read.

        Raises:
            ConfigError: One line that says what it cannot hold, and what to do.
        """

    def takes_biases(self, prunable: PrunableModel) -> bool:
        """Returns whether a bias that compensation adds to the output linears has a place; sizes alone are read."""
        return True

    def words(self) -> list[str]:
        """Returns the words of a command line that ask for this format; none for the default one."""
        found = [] if self.name == "transformers" else ["--format", self.name]
        for option in fields(self):
            value = getattr(self, option.name)
            values = value if isinstance(value, tuple) else () if value == option.default else (value,)
            found += [word for each in values for word in (f"--{option.name}", str(each))]
        return found

    @abstractmethod
    def save(self, prunable: PrunableModel, tokenizer: Any, folder: Path, *, parent: Path | None = None) -> Saved:
        """Writes a pruned model into an empty folder.

        Args:
            prunable: The model, pruned in place.
            tokenizer: Its tokenizer.
            folder: An existing folder.
            parent: Folder of the dense model, whose tokenizer files are kept as they are.
        """
