"""Pages made from the code while the site is built: one for each method, and one of the whole API."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ffp.allocators import METHODS, Heuristic, Method, accepted, is_search

PACKAGE = Path(__file__).parents[1] / "ffp"
# From the bottom of the import order to the top; within a package, the files that others build on come first.
ORDER = "core allocators config store assets models pruning measure report api pipeline cli"
FIRST = ("errors.py", "problem.py", "base.py")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Turns equations into MathML, which browsers draw without a script, and puts every method into the menu."""
    fence = {"name": "math", "class": "math", "format": _mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    methods = next(entry for entry in config.nav or [] if "Methods" in entry)
    methods["Methods"] = ["methods/index.md", *({name: f"methods/{name}.md"} for name in METHODS)]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages. Methods of installed packages have one, too."""
    pages = {"methods/index.md": methods_index(), "api.md": api_page()}
    pages |= {f"methods/{name}.md": method_page(method) for name, method in METHODS.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _mathml(source: str, *_: Any, **__: Any) -> str:
    lines = (line for line in source.splitlines() if line.strip())
    return "\n".join(f"<p>{convert(line, display='block')}</p>" for line in lines)


def methods_index() -> str:
    """Returns the page with the table of all methods."""
    rows = "\n".join(
        f"| [`{name}`]({name}.md) | {method.summary} | {_served(method)} | {_needs(method)} | "
        f"{_linked(method.citation)} |"
        for name, method in METHODS.items()
    )
    return f"""# Methods

A method decides how many units of each decision stay when the total is fixed. All answers go through one
[projection](../concepts.md#the-budget), and all searches may forward the same number of tokens.

| name | idea | granularities | needs | source |
|---|---|---|---|---|
{rows}
"""


def method_page(method: type[Method]) -> str:
    """Returns the page of one method: what it declares, its equations, its module's docstring, its parameters."""
    source = method.__module__
    parts = [
        f"# {method.name}\n\n{method.summary[0].upper()}{method.summary[1:]}.",
        "| version | granularities | needs | source |\n|---|---|---|---|\n"
        f"| {method.version} | {_served(method)} | {_needs(method)} | {_linked(method.citation)} |",
    ]
    if method.equation:
        parts.append(f"## In equations\n\n```math\n{method.equation}\n```")
    parts.append(
        f"## What it takes from its source, and where it departs\n\n{prose(sys.modules[source].__doc__ or '')}"
    )
    parts.append(f"## Parameters\n\n{_parameters(method)}")
    link = f"[`{source}`](../api.md#{source})" if source.startswith("ffp.") else f"`{source}`"
    parts.append(f"Set them under `params` in a [variant](../grid.md#variants) of the grid. Code: {link}.\n")
    return "\n\n".join(parts)


def _served(method: type[Method]) -> str:
    return ", ".join(sorted(method.granularities))


def _needs(method: type[Method]) -> str:
    if is_search(method):
        return "rewards of candidates (a search)"
    reads = issubclass(method, Heuristic) and method.reads_weights
    return "calibration statistics" if reads else "the sizes of the decisions"


def _parameters(method: type[Method]) -> str:
    rows = "\n".join(
        f"| `{key}` | {accepted(method, key)} | `{field.default!r}` | {field.description} |"
        for key, field in method.model_fields.items()
    )
    return f"| name | accepts | default | meaning |\n|---|---|---|---|\n{rows}" if rows else "It has none."


def prose(docstring: str) -> str:
    """Returns a docstring as Markdown: indented blocks become code, arXiv numbers links, nothing else is markup."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in inspect.cleandoc(docstring).splitlines():
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
    """Returns the page of all documented modules. The site reads them from their source, without importing them."""
    parts = [
        "# API\n\nThe modules in the order of imports: each uses only those above it. "
        "`torch` is needed from `ffp.models` on."
    ]
    for path in sorted(PACKAGE.rglob("*.py"), key=_place):
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            names = path.relative_to(PACKAGE.parent).with_suffix("").parts
            parts.append(f"::: {'.'.join(name for name in names if name != '__init__')}")
    return "\n\n".join(parts) + "\n"


def _place(path: Path) -> tuple[int, bool, bool, str]:
    inside = path.relative_to(PACKAGE)
    name = inside.parts[0].removesuffix(".py")
    package = -1 if name == "__init__" else ORDER.split().index(name)
    return package, path.name != "__init__.py", path.name not in FIRST, str(inside)
