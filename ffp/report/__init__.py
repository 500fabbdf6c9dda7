"""Tables, plots and a page from whatever cells of a grid are finished."""

from ffp.core.extras import needs

with needs("grid"):
    from ffp.report.page import build

__all__ = ["build"]
