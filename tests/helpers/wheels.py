"""Wheels of data, as the package index has them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from ffp.store.files import sha256


def make_wheel(folder: Path, members: dict[str, bytes], version: str = "1.0") -> dict[str, Any]:
    """A wheel in `folder`, and the source that means it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"some_data-{version}-py3-none-any.whl"
    about = f"some_data-{version}.dist-info"
    metadata: dict[str, bytes] = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: some-data\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in {**members, **metadata}.items():
            archive.writestr(name, body)
    source = {"kind": "wheel", "package": "some-data", "version": version, "sha256": sha256(path)}
    return {**source, "members": list(members)}
