"""Splitting documents: nothing shared between splits, whatever the order of files; reading corpora."""

import itertools
import json
import random
import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from ffp.assets import fetch_text
from ffp.assets.splits import SPLITS, Document, families, split
from ffp.config import TextConfig
from ffp.core.errors import AssetError

SHARES = {"calibration": 0.25, "search": 0.25, "selection": 0.15, "test": 0.35}
WORDS = [f"word{i}" for i in range(500)]


def documents(n: int = 120, seed: int = 0, **facts: object) -> list[Document]:
    """Documents in groups of up to three, some of them quoting 20 words of another, some of them copies."""
    rng = random.Random(seed)
    made: list[Document] = []
    for i in range(n):
        words = rng.choices(WORDS, k=rng.randint(5, 60))
        if made and rng.random() < 0.3:
            other = rng.choice(made).text.split()
            words = words[:9] + other[:20] + words[9:]
        text = "  ".join(rng.choice(made).text.split()) if made and rng.random() < 0.1 else " ".join(words)
        made.append(Document(f"d{i}", "c", f"g{i // 3}", text, **facts))  # type: ignore[arg-type]
    return made


def thirteen_grams(texts: list[str]) -> set[tuple[str, ...]]:
    """Every run of 13 words, the slow obvious way."""
    grams = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams |= {tuple(words[i : i + 13]) for i in range(len(words) - 12)}
    return grams


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_document_group_or_run_of_13_words(seed: int) -> None:
    found = split(documents(seed=seed), SHARES)
    for one, other in itertools.combinations(SPLITS, 2):
        a, b = found[one], found[other]
        assert not {d.group for d in a} & {d.group for d in b}
        assert not {" ".join(d.text.split()) for d in a} & {" ".join(d.text.split()) for d in b}
        assert not thirteen_grams([d.text for d in a]) & thirteen_grams([d.text for d in b])


def test_every_document_is_kept_once_and_copies_are_not() -> None:
    made = documents()
    kept = [d for part in split(made, SHARES).values() for d in part]
    counts = Counter(" ".join(d.text.split()) for d in kept)
    assert set(counts) == {" ".join(d.text.split()) for d in made}
    assert set(counts.values()) == {1}


def test_families_are_the_connected_components() -> None:
    made = documents(60, seed=3)
    kept = [member for family in families(made) for member in family.members]
    label = {d.id: d.id for d in kept}
    changed = True
    while changed:
        changed = False
        for a, b in itertools.combinations(kept, 2):
            tied = a.group == b.group or thirteen_grams([a.text]) & thirteen_grams([b.text])
            if tied and label[a.id] != label[b.id]:
                label[a.id] = label[b.id] = min(label[a.id], label[b.id])
                changed = True
    expected = {frozenset(d.id for d in kept if label[d.id] == name) for name in label.values()}
    assert {frozenset(d.id for d in family.members) for family in families(made)} == expected


def test_split_does_not_depend_on_the_order_of_documents() -> None:
    made = documents()
    first = {name: {d.id for d in part} for name, part in split(made, SHARES).items()}
    random.Random(1).shuffle(made)
    assert {name: {d.id for d in part} for name, part in split(made, SHARES).items()} == first


def test_shares_are_met_on_average() -> None:
    made = [Document(f"d{i}", "c", f"g{i}", f"only{i}") for i in range(4000)]
    found = split(made, SHARES)
    for name, share in SHARES.items():
        assert abs(len(found[name]) / len(made) - share) < 0.03


def test_a_restricted_corpus_goes_only_where_it_may() -> None:
    made = [Document(f"d{i}", "c", f"g{i}", f"only{i}", splits=("calibration", "search")) for i in range(400)]
    found = split(made, SHARES)
    assert not found["selection"] and not found["test"]
    assert abs(len(found["calibration"]) / 400 - 0.5) < 0.1


def test_the_test_set_keeps_what_the_training_set_quotes() -> None:
    quote = " ".join(WORDS[:20])
    train = [Document("a", "train", "a", f"copied {quote}", splits=("calibration",)),
             Document("b", "train", "b", " ".join(WORDS[30:60]), splits=("calibration",))]  # fmt: skip
    test = [Document("t", "test", "t", f"{quote} original", splits=("test",), corpus=1)]
    for order in itertools.permutations(train + test):
        found = split(list(order), SHARES)
        assert [d.id for d in found["test"]] == ["t"]
        assert [d.id for d in found["calibration"]] == ["b"]


def corpus(path: Path, **facts: object) -> dict[str, object]:
    return {"name": "c", "source": {"kind": "local", "path": str(path)}, **facts}


def config(*corpora: dict[str, object], **facts: object) -> TextConfig:
    return TextConfig.model_validate({"title": "t", "shares": SHARES, "sources": list(corpora), **facts})


def fetched(out: Path) -> dict[str, list[dict[str, str]]]:
    return {
        name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in SPLITS
    }


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_shuffled_files_give_the_same_bytes(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": d.text, "article": d.group} for d in documents()]
    contents = []
    for name, seed in (("one", 1), ("two", 2)):
        random.Random(seed).shuffle(rows)
        write_rows(tmp_path / name / "a.jsonl", rows[:40])
        write_rows(tmp_path / name / "b.jsonl", rows[40:])
        out = tmp_path / name / "text" / "x"
        fetch_text(config(corpus(tmp_path / name, group="article")), out)
        contents.append([(out / f"{split_name}.jsonl").read_bytes() for split_name in SPLITS])
    assert contents[0] == contents[1]


def test_lines_have_id_source_and_text_and_ids_are_distinct(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"text": f"Überschrift {i}\nzweite Zeile"} for i in range(50)])
    fetch_text(config(corpus(tmp_path / "in.jsonl")), tmp_path / "text" / "x")
    lines = [line for part in fetched(tmp_path / "text" / "x").values() for line in part]
    assert all(list(line) == ["id", "source", "text"] and line["source"] == "c" for line in lines)
    assert len({line["id"] for line in lines}) == 50
    assert {line["text"] for line in lines} == {f"Überschrift {i}\nzweite Zeile" for i in range(50)}


def test_between_takes_the_passage_out_of_a_prompt(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in.jsonl", [{"query": f"Title: x\nBackground: p{i}\nQuestion: q\nAnswer:"} for i in range(50)]
    )
    fetch_text(
        config(corpus(tmp_path / "in.jsonl", text="query", between=["Background: ", "\nQuestion:"])),
        tmp_path / "t" / "x",
    )
    texts = {line["text"] for part in fetched(tmp_path / "t" / "x").values() for line in part}
    assert texts == {f"p{i}" for i in range(50)}


ARTICLES = [[f"= Title {i} =\n", "", f" Words of {i} . \n", "== Part ==\n", f" More of {i} . \n"] for i in range(40)]


@pytest.mark.parametrize("restricted", [True, False])
def test_a_hub_data_set_of_paragraphs_becomes_articles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restricted: bool
) -> None:
    rows = ["", *itertools.chain(*ARTICLES)]
    calls = []

    def load_dataset(*args: object, **options: object) -> list[dict[str, str]]:
        calls.append((args, options))
        if options["split"] == "train":
            return [{"text": f"= Train {i} ="} for i in range(50)]
        return [{"text": row} for row in rows]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    hub = {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "config": "raw"}
    begins = "= [^=].* ="
    sources: list[dict[str, object]] = [
        {"name": "train", "source": {**hub, "split": "train"}, "begins": begins, "splits": list(SPLITS[:3])},
        {
            "name": "test",
            "source": {**hub, "split": "test"},
            "begins": begins,
            "splits": ["test"] if restricted else [],
        },
    ]
    fetch_text(config(*sources, order="source"), tmp_path / "t" / "x")
    found = fetched(tmp_path / "t" / "x")
    cache = str(tmp_path / "downloads" / "datasets")
    assert calls[0] == (("a/b", "raw"), {"split": "train", "revision": "0" * 40, "cache_dir": cache})
    if restricted:
        assert "\n\n".join(line["text"] for line in found["test"]) == "\n\n".join(rows)
    else:
        assert {s["source"] for part in found.values() for s in part} == {"train", "test"}


def test_a_plain_text_file_is_cut_into_articles(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"= T{i} =\n \nwords {i}\n\nmore {i}\n\n" for i in range(40)))
    fetch_text(config(corpus(tmp_path / "in.txt", reader="txt", begins="= [^=].* =")), tmp_path / "t" / "x")
    texts = {line["text"].strip() for part in fetched(tmp_path / "t" / "x").values() for line in part}
    assert texts == {f"= T{i} =\n\nwords {i}\n\nmore {i}" for i in range(40)}


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": [f"d{i}" for i in range(50)]}), tmp_path / "in.parquet")
    fetch_text(config(corpus(tmp_path / "in.parquet", reader="parquet")), tmp_path / "t" / "x")
    assert sum(map(len, fetched(tmp_path / "t" / "x").values())) == 50


def test_documents_limits_a_corpus_whatever_the_order(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"document {i}"} for i in range(200)]
    kept = []
    for name in ("one", "two"):
        write_rows(tmp_path / name / "in.jsonl", rows)
        fetch_text(config(corpus(tmp_path / name / "in.jsonl", documents=60)), tmp_path / name / "t" / "x")
        kept.append({line["id"] for part in fetched(tmp_path / name / "t" / "x").values() for line in part})
        rows.reverse()
    assert kept[0] == kept[1] and len(kept[0]) == 60


@pytest.mark.parametrize(
    ("rows", "facts", "message"),
    [
        ([{"txet": "a"}], {}, "no field 'text': did you mean txet"),
        ([{"text": "  "}], {}, "'c' has no document with text"),
        ([{"text": "one"}], {}, "got no document. Add documents"),
        ([{"text": "one"}], {"between": ["<", ">"]}, "nothing between '<' and '>': 'one'"),
        (
            [{"text": "one"}, {"text": "\ud83d"}],
            {},
            "cannot be read as jsonl: line 2 has '\\ud83d', half of a surrogate",
        ),
        ([{"text": "one"}], {"reader": "parquet"}, "cannot be read as parquet"),
        ([{"text": "one"}], {"reader": "olmo-requests"}, "the request in line 1 has no 'doc'"),
    ],
)
def test_faults_are_one_line(
    tmp_path: Path, rows: list[dict[str, object]], facts: dict[str, object], message: str
) -> None:
    write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(AssetError) as fault:
        fetch_text(config(corpus(tmp_path / "in.jsonl", **facts)), tmp_path / "t" / "x")
    assert message in str(fault.value) and "\n" not in str(fault.value)
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.bad_input
def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        config({**corpus(Path("x")), "begins": "("})
