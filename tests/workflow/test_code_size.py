"""Code stays in pieces that a reader sees at once."""

import ast

from tests.helpers.tiny import ROOT

FUNCTION_LINES, MODULE_LINES = 50, 400


def test_no_function_is_longer_than_a_screen_and_no_module_than_eight():
    too_long = {}
    for path in (ROOT / "ffp").rglob("*.py"):
        text = path.read_text()
        if (lines := len(text.splitlines())) > MODULE_LINES:
            too_long[path.name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    too_long[f"{path.name}: {node.name}"] = lines
    assert not too_long
