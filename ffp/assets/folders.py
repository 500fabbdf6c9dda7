"""The files of a folder that somebody else may have filled."""

from __future__ import annotations

from pathlib import Path

from ffp.core.errors import AssetError
from ffp.store.files import visible_files

WEIGHTS = (".safetensors", ".gguf", ".bin")


def files_of(folder: Path) -> list[Path]:
    """Returns the visible files of a folder by name.

    A link to a file elsewhere could carry any file of this machine, such as a key, into a checkpoint that is published
    later. So links stay inside the folder, or inside the repository of the hub's cache that the folder is a snapshot
    of. Weights may be links: they are checked to be tensors and nothing else.

    Args:
        folder: It exists.

    Raises:
        AssetError: Another file is a link that leaves the folder.
    """
    found = visible_files(folder)
    inside = folder.resolve()
    root = inside.parents[1] if inside.parent.name == "snapshots" else inside
    for path in found:
        if path.is_symlink() and not path.name.endswith(WEIGHTS) and not path.resolve().is_relative_to(root):
            raise AssetError(
                f"{path} is a link to {path.resolve()}, outside of its folder. Put a copy of the file in its place if "
                "you mean it."
            )
    return found
