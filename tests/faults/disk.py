"""A disk in a file, for tests that fill it up or let it hang."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def root(*words: str | Path) -> None:
    """Runs a command that has to succeed."""
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, words))}: {done.stdout.strip()}")


class Disk:
    """An ext4 file system on `folder`."""

    def __init__(self, folder: Path):
        self.folder, self._ballast = folder, folder / "ballast"

    @contextmanager
    def full(self) -> Iterator[None]:
        """No byte is free inside the block."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        try:
            yield
        finally:
            self._ballast.unlink()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Whoever writes inside the block waits for its end, as on a file server that does not answer."""
        root("fsfreeze", "--freeze", self.folder)
        try:
            yield
        finally:
            root("fsfreeze", "--unfreeze", self.folder)


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A new disk, mounted on `folder`; OSError where none can be made."""
    image = folder.with_name(f"{folder.name}.img")
    folder.mkdir(parents=True)
    with image.open("wb") as made:
        made.truncate(megabytes << 20)
    root("mkfs.ext4", "-q", "-m", "0", image)
    root("mount", "-o", "loop", image, folder)
    try:
        yield Disk(folder)
    finally:
        root("umount", "-l", folder)
        image.unlink()
