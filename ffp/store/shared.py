"""What a run of a grid makes anew although another grid may need it: by default grids share data/ and results/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.store.digests import changed_calibration
from ffp.store.layout import CellFiles, Layout
from ffp.store.schemas import STATS, AssetFile


def replaced(experiment: Experiment) -> Iterator[str]:
    """Yields a sentence for each model whose calibration was made with other settings, or from another text."""
    layout = Layout.from_grid(experiment.grid)
    for model in experiment.grid.models:
        files = layout.calibration(model)
        if not files.stats.exists():
            continue
        try:
            changed = changed_calibration(experiment, model, files.folder)
            changed += ["text"] if _has_another_text(experiment, layout, files.stats) else []
        except ArtifactError:  # a damaged file; the step that reads it says so
            continue
        if changed:
            count = sum(1 for _ in _finished(layout, model))
            cells = f", and {count} finished cells in {layout.cells / model} with it" if count else ""
            yield (
                f"{files.folder} was made with other settings than {experiment.file} has ({', '.join(changed)}): a run "
                f"makes it anew{cells}. If another grid needs them, give this one data and results of its own."
            )


def _finished(layout: Layout, model: str) -> Iterator[Path]:
    """The scores of a model's pruned cells, of whatever grid."""
    for path in layout.cells.glob(f"{model}/*/*/*/*/{CellFiles(Path()).scores}"):
        try:
            if not Cell.parse(path.parent.relative_to(layout.cells).as_posix()).is_dense:
                yield path
        except ConfigError:
            continue


def _has_another_text(experiment: Experiment, layout: Layout, stats: Path) -> bool:
    """Whether a calibration is of another text than the grid's: that one is here, or the one it is of."""
    if (used := STATS.read_origin(stats).provenance.get("text")) is None:
        return False
    own = experiment.grid.calibration_text
    manifests = (layout.data / "text").glob(f"*/{layout.text(own).manifest.name}")
    digests = {manifest.parent.name: AssetFile.read(manifest).digest for manifest in manifests}
    return digests[own] != used if own in digests else used in digests.values()
