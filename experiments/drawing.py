"""What the experiments' plots share: matplotlib without a display, and SVG files that come out the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ffp.store.files import whole


def pyplot() -> Any:
    """Returns matplotlib.pyplot, set up for files; loaded only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ffp"
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Lays a figure out and writes it as SVG."""
    figure.tight_layout()
    with whole(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
