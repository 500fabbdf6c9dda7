"""What the benchmarks' plots share: matplotlib without a display, and files that are whole and the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ffp.store.files import whole


def pyplot() -> Any:
    """matplotlib.pyplot, loaded where a benchmark draws and not in each of its processes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ffp"
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Lay a figure out and write it as SVG."""
    figure.tight_layout()
    with whole(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
