"""Writes what the tests of faults and the soak counted into one file; each replaces its own section of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ffp.store.files import read_json, write_json
from ffp.store.provenance import provenance

COUNTS_FILE = Path(__file__).parents[2] / "benchmarks/results/faults.json"
SCHEMA = "ffp/faults/2"  # 2: with the section "soak"; "marks" are the sums over sections
COUNTED = ("kills", "faults", "bad_inputs", "lost")


def write_section(path: Path, name: str, counts: dict[str, int], evidence: dict[str, Any]) -> None:
    """Replaces one section of the file, and the sums over all of them.

    Args:
        path: JSON; created where it is missing or of an older schema.
        name: "tests", what `make test-faults` counted, or "soak".
        counts: Numbers by names of COUNTED; 0 without.
        evidence: Plain data that stands behind them.
    """
    known = path.exists() and f'"{SCHEMA}"' in path.read_text()
    body = read_json(path, [SCHEMA])[1] if known else {}
    marks = {key: counts.get(key, 0) for key in COUNTED}
    body[name] = {"marks": marks, **evidence, "provenance": provenance().model_dump(mode="json")}
    sections = {key: body[key] for key in ("soak", "tests") if key in body}
    sums = sum((Counter(section["marks"]) for section in sections.values()), Counter())
    write_json(path, SCHEMA, {"marks": {key: sums[key] for key in COUNTED}, **sections})
