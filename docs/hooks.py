"""Pages made from the code while the site is built: a page a registered method, and one of the whole API."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ffp.allocators.registry import METHODS, Method

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "ffp"
NEEDS = {"stats": "calibration statistics", "reward": "candidates' rewards (a search)"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Equations become MathML, which browsers draw without a script; every method gets its place in the menu."""
    fence = {"name": "math", "class": "math", "format": _mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    methods = next(entry for entry in config.nav or [] if "Methods" in entry)
    methods["Methods"] = ["methods/index.md", *({name: f"methods/{name}.md"} for name in METHODS)]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages; a method that is registered has one, whoever added it."""
    pages = {"methods/index.md": methods_index(), "api.md": api_page()}
    pages |= {f"methods/{name}.md": method_page(method) for name, method in METHODS.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _mathml(source: str, *_: Any, **__: Any) -> str:
    lines = (line for line in source.splitlines() if line.strip())
    return "\n".join(f"<p>{convert(line, display='block')}</p>" for line in lines)


def methods_index() -> str:
    """All methods in a table; what they share."""
    rows = "\n".join(
        f"| [`{name}`]({name}.md) | {method.summary} | {', '.join(sorted(method.granularities))} | "
        f"{'search' if method.is_search else 'one pass' if method.needs else 'nothing'} | {_linked(method.citation)} |"
        for name, method in METHODS.items()
    )
    return f"""# Methods

A method answers one question: how many units of each decision stay, when the total is fixed. All answers go through one
[projection](../concepts.md#the-budget), and all searches may forward the same number of tokens.

| name | idea | granularities | needs | source |
|---|---|---|---|---|
{rows}
"""


def method_page(method: Method) -> str:
    """One method: facts of the registry, equations where docs/equations has them, docstring, parameters."""
    module_name, _, attribute = method.target.partition(":")
    module = importlib.import_module(module_name)
    factory = getattr(module, attribute)
    needs = (
        ", ".join(NEEDS.get(need, need) for need in sorted(method.needs)) or "nothing but the sizes of the decisions"
    )
    facts = f"| version | granularities | needs | source |\n|---|---|---|---|\n| {method.version} | "
    facts += f"{', '.join(sorted(method.granularities))} | {needs} | {_linked(method.citation)} |\n"
    equations = DOCS / "equations" / f"{method.name}.md"
    parts = [f"# {method.name}\n\n{method.summary[0].upper()}{method.summary[1:]}.\n", facts]
    if equations.exists():
        parts.append(f"## In equations\n\n{equations.read_text(encoding='utf-8')}")
    parts.append(f"## What it takes from its source, and where it departs\n\n{prose(inspect.getdoc(module) or '')}")
    parts.append(f"## Parameters\n\n{_parameters(factory)}")
    link = f"[`{module_name}`](../api.md#{module_name})"
    parts.append(f"Set them in a [variant](../grid.md#variants) of the grid. Code: {link}.\n")
    return "\n\n".join(parts)


def _parameters(factory: Any) -> str:
    fields = [field for field in dataclasses.fields(factory) if field.init]
    if not fields:
        return "It has none."
    rows = "\n".join(f"| `{f.name}` | `{f.type}` | `{f.default!r}` |" for f in fields)
    return f"{prose(inspect.getdoc(factory) or '')}\n\n| name | type | default |\n|---|---|---|\n{rows}"


def prose(docstring: str) -> str:
    """A docstring as Markdown: indented blocks are code, arXiv numbers are links, nothing else is markup."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in docstring.splitlines():
        indented = line.startswith("    ")
        if not blocks or (line.strip() and blocks[-1][0] != indented):
            blocks.append((indented, []))
        blocks[-1][1].append(line)
    texts = []
    for indented, lines in blocks:
        text = "\n".join(lines).strip("\n")
        if indented:
            texts.append(f"```text\n{textwrap.dedent(text)}\n```")
        else:
            texts.append(_linked(re.sub(r"([*<>|\[\]])", r"\\\1", text)))
    return "\n\n".join(texts)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def api_page() -> str:
    """Every module of the package, read from its source without importing it."""
    parts = ["# API\n\nThe modules from the bottom of the import order to the top. `torch` is needed from `models` on."]
    for path in sorted(PACKAGE.rglob("*.py"), key=_height):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if path.name != "__init__.py" and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            parts.append(f"::: {name}")
    return "\n\n".join(parts) + "\n"


def _height(path: Path) -> tuple[int, str]:
    order = "types registry config budget artifacts cost runlock texts assets search models pruning calibration reward"
    places = {name: place for place, name in enumerate(f"{order} evaluation report verify steps cli".split())}
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return places.get(name, places["evaluation"]), str(path)
