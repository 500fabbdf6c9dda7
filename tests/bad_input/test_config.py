"""Grid files that ask for what does not exist or cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.refusal import Case, edit, ids, refused, write
from tests.helpers import tiny

GRID = "config/grid.yaml"
REPORT = ["report", "--config", GRID, "--out", "out"]
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


LOCAL = {"kind": "local", "path": "docs.jsonl"}


def grid(**changes: Any) -> Any:
    return edit(GRID, **changes)


def model(**changes: Any) -> Any:
    return edit("config/models/tiny.yaml", **changes)


CASES = [
    Case("an unknown key", grid(sparsitys=[0.2]), r"grid.yaml: unknown key 'sparsitys': did you mean sparsities"),
    Case("an unknown key of a section", grid(search__evalutions=3), r"'search.evalutions': did you mean evaluations"),
    *(Case(f"tasks that are {what}", grid(tasks=given), "grid.yaml: tasks = .*: the name of a file in config/tasks/ or "
           r"a list of lm-eval's tasks is wanted, such as \[arc_easy, \{task: mmlu, num_fewshot: 5\}\]\.$")
      for what, given in (("keys", {"arc_easy": {"num_fewshot": 5}}), ("a number", 5))),
    Case("an unknown key of a task", grid(tasks=[{"task": "x", "fewshot": 5}]),
         "unknown key 'tasks.0.fewshot': did you mean num_fewshot"),
    Case("no task", grid(tasks=[]), r"tasks = '\[\]': the list is empty"),
    Case("a task that is a number", grid(tasks=[5]), "tasks.0 = '5': keys with values are wanted, such as task"),
    Case("a source of the hub without a revision", model(source={"kind": "hub", "repo": "a/b"}),
         "tiny.yaml: key 'source.revision' is missing"),
    Case("a repository for a source", model(source="facebook/opt-125m"),
         "source = 'facebook/opt-125m': keys with values are wanted, first of all kind, which is one of wheel"),
    Case("a source without a kind", model(source={"path": "x"}),
         "key 'source.kind' is missing. Give one of wheel, wheel-parts, hub, local"),
    Case("a source of an unknown kind", model(source={"kind": "hb"}), "source.kind = 'hb': did you mean hub"),
    Case("an unknown key of a local source", model(source={"kind": "local", "path": "x", "reader": "txt"}),
         "unknown key 'source.reader': known: allow_pickle, kind, path, sha256"),
    Case("a misspelt key of a part", model(source={"kind": "wheel-parts", "file": "a", "sha256": "0" * 64, "parts": [
         {"package": "a", "version": "1", "sha256": "0" * 64, "membr": "x"}]}),
         "key 'source.parts.0.member' is missing, and there is an unknown key 'source.parts.0.membr': did you mean"),
    Case("a digest of a file that is none", model(source={"kind": "local", "path": "x", "sha256": {"a": "b"}}),
         "source.sha256.a = 'b': not a SHA-256"),
    *(Case(f"nothing below {key}", write(GRID, f"title: a\nmodels: [tiny]\ntext: docs\nsparsities: [0.2]\n"
           f"methods: [owl]\n{key}:\n"), f"{key} = 'None': no key stands below it. Write some, or leave it out")
      for key in ("variants", "calibration", "recover", "own_sparsities")),
    Case("a list for keys", grid(variants=["owl"]), "variants = .*: keys with values are wanted, such as {a: b}"),
    Case("a number for a section", grid(search=5), "search = '5': keys with values are wanted, such as context"),
    Case("sparsities of an unknown granularity", grid(own_sparsities={"unstructed": [0.5]}),
         "unknown key 'own_sparsities.unstructed': did you mean unstructured"),
    Case("a share of an unknown split", edit("config/texts/docs.yaml", shares={"tset": 1.0}),
         "unknown key 'shares.tset': did you mean test"),
    Case("a misspelt key of a variant that is called like a key",
         grid(variants={"score": {"use": "owl", "scor": "obs"}}),
         "unknown key 'variants.score.scor': did you mean score"),
    Case("a missing key", grid(models=None), "key 'models' is missing"),
    Case("sparsity 0", grid(sparsities=[0]), r"0.0 is outside \(0, 1\); the dense model is always part of the grid"),
    Case("sparsity 1", grid(sparsities=[1]), r"1.0 is outside \(0, 1\)"),
    Case("sparsity above 1", grid(sparsities=[30]), r"30.0 is outside \(0, 1\).*Write 0.3 for 30 %"),
    Case("a sparsity without a list", grid(sparsities=0.3), r"sparsities = '0.3': a list is wanted, such as \[0.3\]"),
    Case("a model without a list", grid(models="tiny"), r"models = 'tiny': a list is wanted, such as \[tiny\]"),
    *(Case(f"no {key}", grid(**{key: []}), rf"{key} = '\[\]': the list is empty, and needs at least 1 item")
      for key in ("models", "methods", "granularities", "seeds")),
    Case("no own sparsity", grid(own_sparsities={"structured": []}),
         r"own_sparsities.structured = '\[\]': the list is empty, and needs at least 1 item"),
    Case("an own sparsity twice", grid(own_sparsities={"unstructured": [0.5, 0.50]}),
         r"own_sparsities = .*\[0.5, 0.5\] names something twice"),
    Case("a sparsity that differs in the last bits", grid(sparsities=[0.3, 0.1 + 0.2]),
         r"\[0.3, 0.3\] names something twice"),
    Case("a sparsity that is 0 to two decimals", grid(sparsities=[1e-12]), r"1e-12 is outside \(0, 1\)"),
    Case("a sparsity that is 1 to two decimals", grid(sparsities=[1 - 1e-12]), r"is outside \(0, 1\)"),
    Case("a sparsity in per cent", grid(sparsities=["30 %"]), "= '30 %': not a number. Write 0.3 for 30 %"),
    Case("sparsities without a value",
         write(GRID, "title: a\nmodels: [tiny]\ntext: docs\nmethods: [owl]\nsparsities:\n"),
         r"sparsities = 'None': a list is wanted, such as \[a, b\]"),
    Case("results in a home directory", grid(results="~/results"),
         "results = '~/results': ~ stands for no folder in a workflow. Write the path out"),
    Case("a negative sparsity", grid(sparsities=[-0.2]), r"-0.2 is outside \(0, 1\)"),
    Case("sparsity NaN", grid(sparsities=[float("nan")]), r"nan is outside \(0, 1\)"),
    Case("infinite sparsity", grid(sparsities=[float("inf")]), r"inf is outside \(0, 1\)"),
    Case("sparsity of three decimals", grid(sparsities=[0.333]), "0.333 has more than the two decimals of a cell's"),
    Case("sparsity in words", grid(sparsities=["much"]), "sparsities.0 = 'much': Input should be a valid number"),
    Case("no sparsity", grid(sparsities=[]), r"sparsities = '\[\]': the list is empty, and needs at least 1 item"),
    Case("a sparsity twice", grid(sparsities=[0.2, 0.3, 0.2]), r"\[0.2, 0.3, 0.2\] names something twice"),
    Case("a method twice", grid(methods=["owl", "owl"]), r"\['owl', 'owl'\] names something twice"),
    Case("an unknown method", grid(methods=["fastfoward"]), "unknown method 'fastfoward': did you mean fastforward"),
    Case("a variant of an unknown method", grid(variants={"owl": {"use": "owls"}}), "unknown method 'owls': did you"),
    Case("an unknown compensation", grid(variants={"owl": {"compensate": "rigde"}}), "compensate = 'rigde'.*'ridge'"),
    Case("an unknown recovery", grid(recover="lroa"), "recover.method = 'lroa'.*'lora'"),
    Case("an unknown key of recovery", grid(recover={"ranks": 4}), "'recover.ranks': did you mean rank"),
    Case("a variant's recovery without tokens", grid(variants={"owl": {"recover": {"tokens": 0}}}),
         "variants.owl.recover.tokens = '0': .*greater than or equal to 1"),
    Case("a dense model that is its own teacher", grid(recover={"loss": "kl", "dense": True}), "its own teacher"),
    Case("recovery of single weights", grid(granularities=["unstructured"], methods=["owl"],
         variants={"owl": {"recover": "lora"}}), "owl serves structured pruning only, and granularities are"),
    Case("a variant with the name of the trained dense model", grid(variants={"dense-lora": {"use": "owl"}}),
         "dense-lora is the row of recover.dense. Give the variant another name"),
    Case("a variant with the name of the unpruned model", grid(methods=["dense"], variants={"dense": {"use": "owl"}}),
         "dense is the row of the unpruned model. Give the variant another name"),
    Case("a fitness that the gradients of a search do not know",
         grid(methods=["a"], variants={"a": {"use": "fastforward-guided", "fitness": "kl"}}),
         "fastforward-guided knows no fitness kl. Leave it out, or take another method"),
    Case("a table that knows no groups of single weights",
         grid(methods=["evolutionary"], granularities=["n-of-4"],
              variants={"evolutionary": {"params": {"start": "fisher-table"}}}),
         r"evolutionary serves structured, unstructured pruning only, and granularities are \['n-of-4'\]"),
    Case("an unknown granularity", grid(granularities=["blocks"]), "granularities.0 = 'blocks'.*'structured'"),
    Case("an unknown model", grid(models=["tini"]), r"config/models/tini.yaml does not exist: did you mean tiny\?"),
    Case("an unknown text", grid(text="doc"), r"config/texts/doc.yaml does not exist: did you mean docs\?"),
    Case("no text", grid(text=None), r"give either text: NAME or texts: \{calibrate: NAME, test: \[NAME, ...\]\}"),
    Case("a text in two ways", grid(texts={"calibrate": "docs", "test": ["docs"]}), "give either text: NAME or texts"),
    Case("texts without a test", grid(text=None, texts={"calibrate": "docs", "test": []}),
         "texts.test = .*the list is empty"),
    Case("a test text twice", grid(text=None, texts={"calibrate": "docs", "test": ["docs", "docs"]}),
         "texts.test = .*names something twice"),
    Case("an unknown test text", grid(text=None, texts={"calibrate": "docs", "test": ["docs", "dosc"]}),
         r"config/texts/dosc.yaml does not exist: did you mean docs\?"),
    Case("calibration on a text that is all test",
         edit("config/texts/docs.yaml", shares=None, sources=[{"name": "d", "source": LOCAL, "splits": ["test"]}]),
         "all of the text docs is a test text.* Name it under texts.test, and another one under texts.calibrate"),
    Case("shares of a text that is all test",
         edit("config/texts/docs.yaml", sources=[{"name": "d", "source": LOCAL, "splits": ["test"]}]),
         r"every corpus has splits: \[test\], so that there is nothing to share out. Drop shares"),
    Case("a text without shares", edit("config/texts/docs.yaml", shares=None), "shares: name calibration, search"),
    Case("unknown tasks", grid(tasks="none"), "config/tasks/none.yaml does not exist"),
    Case("a model's name that leaves the folder", grid(models=["../../etc/passwd"]), r"models.0 = '../../etc/passwd'"),
    Case("a model's name for the shell", grid(models=["tiny; touch x"]), "models.0 = 'tiny; touch x': a name of a"),
    Case("a repository of the hub for a model", grid(models=["Qwen/Qwen2.5-0.5B"]),
         "models.0 = 'Qwen/Qwen2.5-0.5B': a name of a file in config/models/ is wanted. Write config/models/NAME.yaml"),
    Case("a file for a text", grid(text="own/own.jsonl"),
         "text = 'own/own.jsonl': a name of a file in config/texts/ is wanted.*docs/extend.md"),
    Case("a file for a test text", grid(text=None, texts={"calibrate": "docs", "test": ["a/b.txt"]}),
         "texts.test.0 = 'a/b.txt': a name of a file in config/texts/ is wanted"),
    Case("a file for tasks", grid(tasks="own/tasks.jsonl"), "'own/tasks.jsonl': a name of a file in config/tasks/ is"),
    Case("a file in this folder for a text", grid(text="own.jsonl"),
         "config/texts/own.jsonl.yaml does not exist: .*To name one of your own, write that file"),
    Case("a missing key that is spelt otherwise", grid(sparsities=None, sparsity=[0.2]),
         "key 'sparsities' is missing, and there is an unknown key 'sparsity': did you mean sparsities"),
    Case("a substitution of the shell", grid(methods=["$(touch x)"]), r"methods.0 = '\$\(touch x\)': not a name"),
    Case("a name with a line break", grid(methods=["owl\nffp"]), r"methods.0 = 'owl\\nffp': not a name"),
    Case("a name in HTML", grid(methods=["<script>alert(1)</script>"]), "methods.0 = '<script>.*not a name: 1 to"),
    Case("a variant's name in LaTeX", grid(variants={r"\input{x}": {"use": "owl"}}), r"input\{x\}.*not a name"),
    Case("a name that is an option", grid(text="--help"), "text = '--help': a name of a file"),
    Case("a name of 70 letters", grid(text="a" * 70), "text = 'aaa.*a name of a file"),
    Case("a negative seed", grid(seeds=[-1]), "seeds.0 = '-1': Input should be greater than or equal to 0"),
    Case("a seed that numpy lacks", grid(seeds=[2**32]), "seeds.0 = '4294967296': Input should be less than or equal"),
    Case("a negative seed of a draw", grid(evaluation={"seed": -1}), "evaluation.seed = '-1': Input should be greater"),
    Case("half a seed", grid(seeds=[0.5]), "seeds.0 = '0.5': Input should be a valid integer"),
    Case("no window", grid(calibration__windows=0), "calibration.windows = '0': .*greater than or equal to 1"),
    *(Case(f"a window of one token in {part}", grid(**{f"{part}__context": 1}),
           f"{part}.context = '1': Input should be greater than or equal to 2")
      for part in ("calibration", "search", "evaluation")),
    Case("more windows of an evaluation than there are", grid(search__windows_per_evaluation=9),
         r"search.windows_per_evaluation = '9': more than the 8 of search.windows. Lower the first or raise the"),
    Case("fewer windows than an evaluation draws where none is named", grid(search={"windows": 3}),
         "search.windows_per_evaluation = '4': more than the 3 of search.windows"),
    Case("a negative number of evaluations", grid(search__evaluations=-5), "search.evaluations = '-5'"),
    Case("a number as title", grid(title=3), "title = '3': not a text. Put it in quotes"),
    *(Case(f"{word} as the name of a method", write(GRID, f"title: a\nmodels: [tiny]\ntext: docs\nsparsities: [0.2]\n"
           f"methods: [{word}]\n"), "methods.0 = '.*': not a text. Put it in quotes")
      for word in ("no", "on", "2024-01-01", "12")),
    *(Case(f"{text}, which YAML takes for another number", write(GRID, f"title: a\nseeds: [{text}]\n"),
           f"{text} is the number {value} in YAML. Write {value}, or put {text} in quotes")
      for text, value in (("010", 8), ("1:30", 90), ("1:30:00", 5400), ("1:30.5", 90.5))),
    *(Case(f"{word} for a number", edit(GRID, **{key: given}), f"{where} = '{word}': not a number. YAML reads yes, on")
      for key, given, where, word in (
          ("seeds", [True], "seeds.0", "True"), ("sparsities", [0.3, False], "sparsities.1", "False"),
          ("search", {"windows": True}, "search.windows", "True"))),
    Case("a compensated search of a method that searches nothing",
         grid(methods=["a"], variants={"a": {"use": "owl", "compensate": "ridge", "compensated": True}}),
         "variants.a.compensated has no effect with owl, which searches nothing. Leave it out"),
    *(Case(f"a compensated search of {use}, which scores gates",
           grid(methods=["a"], variants={"a": {"use": use, "compensate": "ridge", "compensated": True}}),
           f"variants.a.compensated has no effect with {use}, which scores gates on units alone. Leave it out")
      for use in ("grasprune", "policy-gradient")),
    Case("a list instead of keys", write(GRID, "- a\n- b\n"), "holds a list, not a mapping of keys"),
    Case("an empty file", write(GRID, ""), "config file config/grid.yaml is empty. Write its keys"),
    Case("a file of remarks", write(GRID, "# nothing\n"), "config file config/grid.yaml is empty"),
    Case("broken YAML", write(GRID, "title: [a\n"),
         "grid.yaml is not valid YAML: .* in \"config/grid.yaml\", line 2, column 1"),
    Case("a tab in YAML", write(GRID, "title: a\n\tmodels: b\n"), "grid.yaml is not valid YAML"),
    Case("a key twice", write(GRID, "title: a\ntitle: b\n"), "key 'title' appears twice"),
    Case("aliases that blow up", write(GRID, ALIASES), r"aliases \(\*name\) are not allowed"),
    Case("YAML that runs code", write(GRID, "title: !!python/object/apply:os.system [touch x]\n"), "not valid YAML"),
    Case("YAML nested too deep", write(GRID, "[" * 20_000), "grid.yaml is not valid YAML"),
    Case("two megabytes of YAML", write(GRID, "title: " + "a" * 2_000_000), "2000007 characters, over 1000000"),
    Case("no text", write(GRID, b"\xff\xfe\x00title"), "cannot be read: not UTF-8"),
    Case("no file", lambda folder: (folder / GRID).unlink(), "grid.yaml cannot be read: No such file or directory"),
    Case("a folder", lambda folder: None, "config file config cannot be read: Is a directory",
         command=("report", "--config", "config", "--out", "out")),
    Case("shares that do not sum to 1", edit("config/texts/docs.yaml", shares={"test": 0.5}), "shares.*sum 1"),
    Case("a model without a source", edit("config/models/tiny.yaml", source=None), "key 'source' is missing"),
    Case("an unknown precision", edit("config/models/tiny.yaml", dtype="float64"), "dtype = 'float64'.*'float32'"),
    Case("an unknown device", edit("config/models/tiny.yaml", device="gpu"), "device = 'gpu'.*'cuda'"),
    Case("blocks in words", edit("config/models/tiny.yaml", keep_blocks="first"),
         "keep_blocks = 'first': 'first' names no blocks. Write numbers, ranges and slices with commas"),
    Case("blocks that are a number", edit("config/models/tiny.yaml", keep_blocks=3),
         "keep_blocks = '3': not a text. Put it in quotes"),
    Case("no thread", edit("config/models/tiny.yaml", resources={"threads": 0}), "resources.threads = '0'"),
]  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_bad_configuration_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.configure(tmp_path)
    refused(case, REPORT, tmp_path, monkeypatch, capfd)


def test_the_sound_configuration_is_not_refused(tmp_path: Path) -> None:
    """What the cases damage works before."""
    from ffp.config import Experiment

    assert len(list(Experiment(tiny.configure(tmp_path)).cells())) == 4
