"""A digest of the code that a step can reach, so that no edit is ever taken for an old result.

The digest covers the step's function and every function, class and constant of ffp that these name, and so on;
comments, docstrings and layout do not count. After an edit exactly the jobs whose code it can touch run again.
`make accept` records, in accepted.json, that today's code gives the numbers of the recorded versions: results made
since then stay valid. Methods of other packages count by the file that defines them.

We follow single definitions ourselves: grimp follows whole modules, so that an edit of `export` in pipeline/steps.py
would make every step of every cell run again.
Left out are ffp.config, the search for methods and this module: what matters of them reaches a step as settings.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ACCEPTED = PACKAGE / "store" / "accepted.json"
OUTSIDE = ("ffp.config", "ffp.store.identity", "ffp.store.code_version", "ffp.store.layout")
REST = "<rest>"  # statements of a module that are neither imports nor definitions
Item = tuple[str, str]  # module, name
ROOTS: Mapping[str, tuple[Item, ...]] = {
    "asset": (("ffp.assets", "fetch_model"), ("ffp.assets", "fetch_text"), ("ffp.assets", "fetch_tasks")),
    "calibrate": (("ffp.pipeline.steps", "calibrate"),),
    "grams": (("ffp.pipeline.steps", "collect_grams"),),
    "allocate": (("ffp.pipeline.steps", "allocate"),),
    "apply": (("ffp.pipeline.steps", "apply"),),
    "recover": (("ffp.pipeline.recover", "recover"),),
    "evaluate": (("ffp.pipeline.steps", "evaluate"),),
    "report": (("ffp.report", "build"),),
}

DATA = {"report": "report/**/*.html"}  # files that are no Python


def key(step: str, version: str, target: str = "") -> str:
    """Returns the digest that identifies the code of a step.

    Args:
        step: A key of ROOTS.
        version: Of the step, and of all else whose version says that numbers changed.
        target: "module:class" of the method that the step calls by name.

    Returns:
        If `make accept` covers today's code: the digest recorded when this version was first accepted. Otherwise
        today's digest.
    """
    entry, now = _accepted().get(_entry(step, target)), digest(step, target)
    return entry["since"] if entry and (entry["code"], entry["version"]) == (now, version) else now


@functools.cache
def digest(step: str, target: str = "") -> str:
    """Returns 16 hex digits over all the code behind a step."""
    state = hashlib.sha256()
    module, _, name = target.partition(":")
    if target and not module.startswith("ffp."):
        state.update(Path(inspect.getfile(importlib.import_module(module))).read_bytes())
        target = ""
    for module, name in sorted(closure(step, target)):
        state.update(f"{module} {name} ".encode() + _source(module, name))
    for path in sorted(PACKAGE.glob(DATA[step])) if step in DATA else ():
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def closure(step: str, target: str = "") -> frozenset[Item]:
    """Returns the definitions behind a step: those that it names, directly or through others."""
    module, _, name = target.partition(":")
    todo = [*ROOTS[step], *([(module, name)] if target else [])]
    seen: set[Item] = set()
    while todo:
        item = todo.pop()
        if item not in seen and not item[0].startswith(OUTSIDE):
            seen.add(item)
            todo += [*_named_by(*item), (item[0], REST)]
    return frozenset(item for item in seen if item[1] in _module(item[0]).definitions)


def accept(steps: Iterable[tuple[str, str, str]]) -> None:
    """Records that the code as it is gives the numbers of these versions, (step, version, target) each."""
    old, new = _accepted(), {}
    for step, version, target in steps:
        now, entry = digest(step, target), old.get(_entry(step, target))
        since = entry["since"] if entry and entry["version"] == version else now
        new[_entry(step, target)] = {"version": version, "since": since, "code": now}
    ACCEPTED.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")
    _accepted.cache_clear()


@functools.cache
def _accepted() -> dict[str, dict[str, str]]:
    return dict(json.loads(ACCEPTED.read_text())) if ACCEPTED.is_file() else {}


def _entry(step: str, target: str) -> str:
    return f"{step} {target}".strip()


class _Module:
    """A module's source as definitions by name, and what its names mean elsewhere in ffp."""

    def __init__(self, name: str):
        path = PACKAGE.joinpath(*name.split(".")[1:])
        self.name, self.package = name, path.is_dir()
        self.tree = ast.parse((path / "__init__.py" if self.package else path.with_suffix(".py")).read_bytes())
        self.definitions: dict[str, list[ast.stmt]] = {REST: []}
        self.imports: dict[str, Item] = {}  # local name: (module, name), or (module, "") for a module itself
        for statement in self.tree.body:
            for defined in _defined(statement):
                self.definitions.setdefault(defined, []).append(statement)
        only_types = {id(node) for part in ast.walk(self.tree) if _for_types(part) for node in ast.walk(part)}
        for node in ast.walk(self.tree):
            if id(node) in only_types:
                continue
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ffp":
                for alias in node.names:
                    inside = f"{node.module}.{alias.name}"
                    target = (inside, "") if _is_module(inside) else (str(node.module), alias.name)
                    self.imports[alias.asname or alias.name] = target
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "ffp" and alias.asname:
                        self.imports[alias.asname] = (alias.name, "")

    def named_by(self, name: str) -> Iterator[Item]:
        """Yields the items of ffp that a definition names; all of a module that is used as a value."""
        if not self.definitions.get(name):
            if name in self.imports:  # a name that a package passes on
                yield from self._meant(self.imports[name])
            return
        for statement in self.definitions[name]:
            dotted = [n for n in ast.walk(statement) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
            through = {id(n.value) for n in dotted}
            for pair in dotted:
                module, inner = self.imports.get(pair.value.id, ("", ""))  # type: ignore[attr-defined]
                if module and not inner:
                    inside = f"{module}.{pair.attr}"
                    yield from self._meant((inside, "") if _is_module(inside) else (module, pair.attr))
            for node in ast.walk(statement):
                if isinstance(node, ast.Name):
                    if node.id in self.definitions and node.id != name:
                        yield self.name, node.id
                    elif node.id in self.imports and (self.imports[node.id][1] or id(node) not in through):
                        yield from self._meant(self.imports[node.id])

    def _meant(self, item: Item) -> Iterator[Item]:
        module, name = item
        if name or module.startswith(OUTSIDE):
            yield item
        else:
            yield from ((module, each) for each in _module(module).definitions)


def _for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


@functools.cache
def _named_by(module: str, name: str) -> list[Item]:
    return list(dict.fromkeys(_module(module).named_by(name)))


@functools.cache
def _source(module: str, name: str) -> bytes:
    """Returns the digest of a definition without comments, docstrings and layout."""
    statements = _module(module).definitions[name]
    return hashlib.sha256("\n".join(ast.dump(_without_docstrings(each)) for each in statements).encode()).digest()


@functools.cache
def _is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _defined(statement: ast.stmt) -> list[str]:
    """Returns the names that a top-level statement binds; REST where it binds none."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)] or [REST]
    if isinstance(statement, ast.Import | ast.ImportFrom) or _is_docstring(statement):
        return []
    return [REST]


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and _is_docstring(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
    return statement
