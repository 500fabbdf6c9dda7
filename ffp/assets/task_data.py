"""The data sets that lm-eval's tasks ask for: fetched once at a commit of the hub, and answered from files after that.

A task of lm-eval, be it YAML or Python or one of a group, gets its documents by `datasets.load_dataset`. While tasks
are built we answer that call: `Recorder` from the hub, and keeps the splits that were looked at; `Stored` from what
was kept. So every task is served, without a network, from files whose digests are known.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ffp.assets.fetch import hub, resolve_revision
from ffp.assets.stock import find_stock, stubs
from ffp.config import HubSource, LocalSource, TaskConfig, TasksConfig
from ffp.core.errors import ArtifactError, AssetError, reason_of
from ffp.core.extras import needs
from ffp.store.layout import AssetFiles, expanded
from ffp.store.schemas import DatasetsFile, StoredDataset

LOG = logging.getLogger("ffp")
# What load_dataset is given in place of a data set's name to read files, which lm-eval's YAML or ours then names.
SUFFIXES = {".jsonl": "json", ".parquet": "parquet"}
FORMATS = ("arrow", "csv", "json", "parquet", "text")
IGNORED = ("revision", "trust_remote_code", "cache_dir")  # keys that do not say which data is meant
Loader = Callable[..., Any]


@contextmanager
def answered_by(loader: Callable[[Loader], Loader]) -> Iterator[None]:
    """Lets a loader answer `datasets.load_dataset`, which is the only way in: lm-eval has no hook for its data.

    Args:
        loader: Is given the true load_dataset and returns what answers.
    """
    import datasets

    true = datasets.load_dataset
    datasets.load_dataset = loader(true)
    try:
        yield
    finally:
        datasets.load_dataset = true


def build_stock(tasks: TasksConfig, scratch: Path) -> Any:
    """Returns a TaskManager of lm-eval that knows the stock tasks of a set, and what groups among them are made of.

    Args:
        tasks: The set; its tasks that are read from files are left to the caller.
        scratch: Folder for its YAML files.
    """
    with needs("tasks"):
        from lm_eval.tasks import TaskManager
    for name, body in stubs(task.stock for task in tasks.tasks.values() if not task.has_files).items():
        (scratch / f"{name}.yaml").write_text(json.dumps(body))
    return TaskManager(include_path=str(scratch), include_defaults=False)


def stock_objects(manager: Any, name: str, task: TaskConfig) -> list[Any]:
    """Returns lm-eval's objects for a stock task: the task, its group, or all tasks of a tag.

    Raises:
        AssetError: lm-eval cannot build it, in one line.
    """
    try:
        found = manager.load(task.stock)
    except (ArtifactError, AssetError):
        raise
    except Exception as error:  # a task is code of its own, with packages of its own
        raise AssetError(f"task {name!r}: lm-eval cannot build {task.stock!r}: {reason_of(error)}.") from error
    if find_stock(task.stock).kind == "group":
        return [found["groups"][task.stock]]
    return list(found["tasks"].values())


def leaves(objects: Iterable[Any]) -> list[Any]:
    """Returns the tasks among lm-eval's objects, and those of the groups among them."""
    return [task for one in objects for task in (one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one])]


def look_at(task: Any) -> None:
    """Looks at all that scoring a task will look at: the scored documents, and those that examples are drawn from."""
    if not hasattr(task, "task_docs"):  # what is written in Python; others look when they are built
        len(task.eval_docs)
        task.fewshot_docs()


class Recorder:
    """Answers load_dataset from the hub, or from a source that stands for it, and keeps what tasks look at."""

    def __init__(self, task: TaskConfig, downloads: Path):
        self.task, self.downloads = task, downloads
        self.commits: dict[str, str] = {}
        self.found: dict[str, tuple[StoredDataset, Any]] = {}

    def __call__(self, true: Loader) -> Loader:
        """Returns what answers in place of the true load_dataset."""

        def load(path: str, name: str | None = None, **arguments: Any) -> Any:
            key = request_key(path, name, arguments)
            if key not in self.found:
                self.found[key] = self._load(true, path, name, arguments)
            return self.found[key][1]

        return load

    def _load(self, true: Loader, path: str, name: str | None, arguments: dict[str, Any]) -> tuple[StoredDataset, Any]:
        kept = {key: value for key, value in arguments.items() if key not in IGNORED}
        source, commit = self.task.source, None
        cache = str(self.downloads / "datasets")
        if isinstance(source, LocalSource):
            data = _from_folder(true, expanded(source.path), name, {**kept, "cache_dir": cache})
        else:
            where, wanted, more = path, self.task.revision or arguments.get("revision"), {}
            if isinstance(source, HubSource):
                where, wanted = source.repo, source.revision
            if where not in FORMATS:
                commit = self._commit(where, wanted)
                more = {"revision": commit}
            data = hub(where, commit, lambda: true(where, name, cache_dir=cache, **kept, **more))
        entry = StoredDataset(path=path, name=name, arguments=_plain(kept), commit=commit, splits={}, scored=[])
        return entry, _watched(data, kept.get("split"))

    def _commit(self, repo: str, revision: str | None) -> str:
        """The commit of a repository, which the hub is asked for once."""
        if repo not in self.commits:
            self.commits[repo] = resolve_revision(repo, revision, repo_type="dataset")
            LOG.info("data set %s is at commit %s", repo, self.commits[repo])
        return self.commits[repo]

    def save(self, files: AssetFiles, tasks: Iterable[Any]) -> list[StoredDataset]:
        """Writes the splits that were looked at, and returns what was kept of each data set.

        Args:
            files: Where to.
            tasks: The tasks of lm-eval that asked for them.
        """
        scored, found = {one.get_config("test_split") or one.get_config("validation_split") for one in tasks}, []
        for entry, data in self.found.values():
            splits = {}
            for split in sorted(data.seen):
                stem = re.sub(r"[^\w.-]+", "-", "--".join(filter(None, (entry.path, entry.name, split))))
                file = files.folder / f"{stem}.arrow"
                number = 1
                while file.exists():
                    number += 1
                    file = files.folder / f"{stem}-{number}.arrow"
                _write_arrow(data.splits[split], file)
                splits[split] = file.name
            judged = [split for split in splits if split in scored] or list(splits)
            found.append(entry.model_copy(update={"splits": splits, "scored": judged}))
        return found


class Stored:
    """Answers load_dataset from the files that a Recorder kept for a task."""

    def __init__(self, folder: Path, name: str, scratch: Path):
        """Opens what was kept.

        Args:
            folder: The fetched tasks.
            name: One of them.
            scratch: Where the datasets library may cache: tasks that shuffle a document's answers rely on it to give
                the same ones each time.
        """
        self.files, self.name, self.scratch = AssetFiles(folder), name, scratch
        kept = DatasetsFile.read(self.files.datasets).tasks.get(name, [])
        self.known = {request_key(one.path, one.name, one.arguments): one for one in kept}

    def __call__(self, true: Loader) -> Loader:
        """Returns what answers in place of the true load_dataset."""
        return self._load

    def _load(self, path: str, name: str | None = None, **arguments: Any) -> Any:
        import datasets

        entry = self.known.get(request_key(path, name, arguments))
        if entry is None:
            what = f"{path}{f', {name}' if name else ''}"
            raise ArtifactError(
                f"task {self.name!r} wants the data set {what}, which {self.files.datasets} does not have. "
                "Delete the folder and fetch the tasks again."
            )
        parts = {}
        for split, kept in entry.splits.items():
            file, link = (self.files.folder / kept).absolute(), self.scratch / kept
            if not file.is_file():
                raise ArtifactError(f"{file} is missing. Run the rule that makes it again.")
            if not link.exists():
                link.symlink_to(file)
            parts[split] = datasets.Dataset.from_file(str(link))
        asked = arguments.get("split")
        return parts[str(asked)] if asked is not None else datasets.DatasetDict(parts)


def request_key(path: str, name: str | None, arguments: Mapping[str, Any]) -> str:
    """Returns a text that is the same for the same request of load_dataset, whatever the revision."""
    kept = {key: value for key, value in arguments.items() if key not in IGNORED and value is not None}
    return json.dumps([path, name, _plain(kept)], sort_keys=True)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(arguments), default=str)))


def _from_folder(true: Loader, folder: Path, name: str | None, arguments: dict[str, Any]) -> Any:
    """A data set out of a folder: a copy of a hub repository, or NAME/SPLIT.jsonl (.parquet) without a README.md."""
    files = sorted(path for path in (folder / (name or "")).glob("*.*") if path.suffix in SUFFIXES)
    try:
        if (folder / "README.md").is_file() or not files:
            return true(str(folder), name, **arguments)
        splits = {path.stem: str(path) for path in files}
        return true(SUFFIXES[files[0].suffix], data_files=splits, **arguments)
    except Exception as error:
        raise AssetError(
            f"{folder} has no data set{f' {name}' if name else ''}: {reason_of(error)}. "
            f"Make it a copy of the hub's repository, or put {name or ''}/SPLIT.jsonl there."
        ) from error


def _watched(data: Any, split: Any) -> Any:
    """A data set that knows which of its splits were looked at: `seen`, and `splits` as they are."""
    import datasets

    if isinstance(data, datasets.Dataset):  # of the one split that was asked for
        data.seen, data.splits = {str(split)}, {str(split): data}
        return data

    class Watched(datasets.DatasetDict):  # type: ignore[misc, unused-ignore]
        seen: set[str]

        def __getitem__(self, split: Any) -> Any:
            self.seen.add(str(split))
            return super().__getitem__(split)

    found = Watched(data)
    found.seen, found.splits = set(), dict(data)
    return found


def _write_arrow(data: Any, path: Path) -> None:
    """Writes a split as an Arrow stream with its features, as the datasets library caches one."""
    import pyarrow

    schema = data.features.arrow_schema
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in data.with_format("arrow").iter(batch_size=1000):
            writer.write_table(batch.cast(schema))
