import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.config import DataConfig
from data.curate import decontaminate, engine
from data.curate.decontaminate import Decontaminate
from data.curate.items import _names, item_files
from data.curate.partition import through, to_batch
from data.curate.recipe import build_recipe
from data.document import Document

packed = functools.partial(gzip.compress, mtime=0)  # or the names of tests would hold the hour

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
    "did Natalia sell altogether in April and May?"
)
SHORT = "Were Scott Derrickson and Ed Wood of the same nationality?"  # 10 words
OTHER = "A farmer keeps 12 hens; each of them lays 5 eggs a week, and he sells every dozen for 3 coins at the market."
PROSE = "The town lies on a hill, and people have lived there for a long time with their animals. "


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where indices go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    decontaminate._index.cache_clear()
    return tmp_path / "cache" / "quintet"


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def items(tmp_path):
    """A small benchmark."""
    records = ({"question": QUESTION, "answer": "72"}, {"question": SHORT}, {"question": "Who?"}, {"question": OTHER})
    return lines(tmp_path / "items" / "sums.jsonl", *records)


def dropped(step, *texts):
    batch = to_batch([Document(str(number), text, "") for number, text in enumerate(texts)])
    return {one.id: (one.reason, one.detail) for one in through({"decontaminate": step}, batch)[1]}


def disguised(text):
    """The text in other clothes: case, punctuation, quotes, white space."""
    return [
        text,
        text.upper(),
        text.replace(" ", "\n"),
        text.replace(",", " --").replace(".", "!").replace("?", ""),
        "\u201c" + text.replace(" ", "\u00a0\u00a0") + "\u201d",
        text.replace("e", "e\u00ad"),
        text.lower().replace(" ", " * "),
    ]


@pytest.mark.parametrize("item", [QUESTION, SHORT, OTHER])
def test_an_item_is_found_however_it_is_written_and_wherever_it_stands(items, item):
    texts = [form for one in disguised(item) for form in (one, f"{PROSE * 50} {one} {PROSE * 50}", f"<p>{one}")]
    found = dropped(Decontaminate((items,)), *texts)
    assert len(found) == len(texts)
    assert {reason for reason, _ in found.values()} == {"contaminated_sums"}


def test_the_detail_names_the_item_its_runs_and_the_first(items):
    text = f"{PROSE} {OTHER} {QUESTION} {PROSE}"
    runs = len(QUESTION.split()) - 12
    assert dropped(Decontaminate((items,)), text, PROSE)["0"] == (
        "contaminated_sums",
        f"sums:1, n-grams in common: {runs}, the first: {' '.join(QUESTION.split()[:13]).lower()}",
    )


def test_what_shares_less_than_a_run_stays(items):
    words = QUESTION.split()
    changed = [word if place % 13 != 12 else "red" for place, word in enumerate(words)]
    halves = " ".join(words[:12]), " ".join(words[12:24])  # of one run, in documents side by side
    assert not dropped(Decontaminate((items,)), " ".join(changed), *halves, SHORT[:-15], PROSE, "", " ")


def test_items_of_few_words_are_told(items, capsys):
    Decontaminate((items,)).prepare()
    assert "3 benchmark items are looked for; 1 more have fewer than 8 words" in capsys.readouterr().err
    Decontaminate((items,), min_words=13).prepare()
    assert "2 benchmark items are looked for; 2 more have fewer than 13 words" in capsys.readouterr().err
    assert not dropped(Decontaminate((items,), min_words=11), SHORT)
    with pytest.raises(UserError, match=r"no item of .* has 60 words"):
        Decontaminate((items,), ngram=60, min_words=60).prepare()


def test_the_form_of_a_benchmark_is_no_item(tmp_path, capsys):
    form = "Answer the following question with a single letter, and explain your choice step by step in detail."
    path = lines(tmp_path / "forms.jsonl", *({"text": f"{form} Case {n}: {'x' * n} {OTHER}"} for n in range(1, 7)))
    assert set(dropped(Decontaminate((path,)), form)) == {"0"}
    assert not dropped(Decontaminate((path,), max_items=5), form)
    assert set(dropped(Decontaminate((path,), max_items=5), f"step in detail. Case 3: xxx {OTHER}")) == {"0"}
    Decontaminate((path,), max_items=5).prepare()
    assert "runs of words are in more than 5 items" in capsys.readouterr().err


def test_only_some_fields_may_count(tmp_path):
    nested = {"id": 1, "question": {"stem": QUESTION}, "context": [["title", [OTHER]]]}
    path = lines(tmp_path / "sums.jsonl", nested)
    assert set(dropped(Decontaminate((path,)), QUESTION, OTHER)) == {"0", "1"}
    assert set(dropped(Decontaminate((path,), fields=("question",)), QUESTION, OTHER)) == {"0"}
    assert set(dropped(Decontaminate((path,), fields=("stem",)), QUESTION, OTHER)) == {"0"}
    assert set(dropped(Decontaminate((path,), fields=("context",)), QUESTION, OTHER)) == {"1"}


def write_csv(path):
    path.write_text(f'\ufeffquestion,answer\n"{QUESTION}",72\n"{OTHER}",15\n')


def write_csv_without_names(path):
    path.write_text(f'"{QUESTION}",72\n"{OTHER}",15,"more"\n')


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist([{"q": {"stem": QUESTION}, "a": [OTHER], "n": 1, "none": None}]), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda path: path.write_text(json.dumps({"a": QUESTION}) + "\n\n" + json.dumps([OTHER]))),
        ("a.jsonl.gz", lambda path: path.write_bytes(packed(json.dumps([QUESTION, OTHER]).encode()))),
        ("a.jsonl.zst", lambda path: path.write_bytes(zstandard.compress(json.dumps([QUESTION, OTHER]).encode()))),
        ("a.json", lambda path: path.write_text(json.dumps([{"a": QUESTION}, {"a": OTHER}]))),
        ("a.json", lambda path: path.write_text(json.dumps({"one": QUESTION, "data": [{"a": OTHER}], "n": 1}))),
        ("A.JSON.GZ", lambda path: path.write_bytes(packed(json.dumps([QUESTION, OTHER]).encode()))),
        ("a.csv", write_csv),
        ("a.csv", write_csv_without_names),
        ("a.parquet", write_parquet),
        ("a.txt", lambda path: path.write_text(f"{QUESTION[:60]}\n{QUESTION[60:]}\n\n\n{OTHER}")),
    ],
)
def test_items_are_read_from_files_of_many_kinds(tmp_path, name, write):
    folder = tmp_path / "items"
    folder.mkdir()
    write(folder / name)
    (folder / "LICENSE.txt").write_text(PROSE)
    assert set(dropped(Decontaminate((str(folder),)), QUESTION, OTHER, PROSE)) == {"0", "1"}


def test_csv_has_fields_by_the_names_of_its_first_row(tmp_path):
    write_csv(tmp_path / "a.csv")
    path = str(tmp_path / "a.csv")
    assert set(dropped(Decontaminate((path,), fields=("question",)), QUESTION)) == {"0"}
    with pytest.raises(UserError, match="no item of"):
        Decontaminate((path,), fields=("choices",)).prepare()


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    one = lines(tmp_path / "sums" / "test.jsonl", {"a": QUESTION})
    other = lines(tmp_path / "farm" / "test.jsonl", {"a": OTHER})
    found = dropped(Decontaminate((one, other)), QUESTION, OTHER)
    assert [found[key][0] for key in "01"] == ["contaminated_sums_test", "contaminated_farm_test"]
    assert found["1"][1].startswith("farm_test:1, ")


def test_names_differ_however_deep_the_folders_do(tmp_path):
    """By as many folders as it takes, of those that are alike alone; in one folder by the endings."""
    paths = (
        "m1/test/data.jsonl",
        "m2/test/data.jsonl",
        "m1/dev/data.jsonl",
        "m1/other.jsonl",
        "m1/other.csv",
        "one.csv",
    )
    for path in paths:
        lines(tmp_path / path, {"a": QUESTION})
    names = [file.name for file in item_files(tuple(str(tmp_path / path) for path in paths))]
    assert names == ["m1_test_data", "m2_test_data", "dev_data", "other.jsonl", "other.csv", "one"]


PARTS = st.lists(st.sampled_from(["a", "b", "a_b", "b_a"]), min_size=1, max_size=4).map("/".join)
PLACES = st.lists(st.tuples(PARTS, st.sampled_from([".jsonl", ".txt", ".txt.gz", ".csv"])), min_size=1, max_size=12)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(places=PLACES)
def test_names_always_differ(places):
    paths = [Path(part + ending) for part, ending in dict.fromkeys(places)]
    names = _names(paths)
    assert list(names) == paths
    assert len(set(names.values())) == len(paths)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', "a.jsonl cannot be read"),
        ("a.jsonl", b"\xff\xfe\n", "a.jsonl cannot be read"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read"),
        ("a.jsonl.gz", packed(b'{"a": "b"}' * 99)[:-20], "a.jsonl.gz cannot be read"),
        ("a.jsonl.zst", b"no zstd", "a.jsonl.zst cannot be read"),
        ("a.json", b"[" * 100_000, "a.json cannot be read"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
        ("a.txt", b"\xff", "a.txt cannot be read"),
        ("a.doc", b"text", r"a.doc holds no items; .* \.txt, each also \.gz or \.zst, or \.parquet$"),
        ("a.parquet.gz", packed(b"PAR1"), r"a.parquet.gz holds no items; .*, or \.parquet$"),
    ],
)
def test_files_that_cannot_be_read_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Decontaminate((str(tmp_path / name),)).prepare()


def test_settings_that_cannot_be_are_told(tmp_path):
    for name in ("gone.jsonl", "gone"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            Decontaminate((str(tmp_path / name),)).prepare()
    for settings_, message in (({"items": ()}, "names no file"), ({"min_words": 14}, "min_words=14 must lie in")):
        with pytest.raises(UserError, match=message):
            build_recipe(({"step": "decontaminate", "items": ("a.jsonl",), **settings_},))
    with pytest.raises(UserError, match=r"recipe\[0\].items is missing"):
        build_recipe(({"step": "decontaminate"},))


def test_the_index_is_made_once_and_follows_the_items(items, tmp_path, cache):
    step = Decontaminate((items,))
    step.prepare()
    made = {path: path.stat().st_mtime_ns for path in cache.glob("[!.]*")}
    assert len(made) == 4
    step.prepare()
    assert {path: path.stat().st_mtime_ns for path in cache.glob("[!.]*")} == made
    assert not dropped(step, PROSE)
    lines(tmp_path / "items" / "sums.jsonl", {"question": PROSE})
    assert set(dropped(step, PROSE, QUESTION)) == {"0"}
    next(path for path in sorted(cache.glob("[!.]*")) if path not in made).write_bytes(b"")
    decontaminate._index.cache_clear()
    with pytest.raises(UserError, match="remove the index, and it is made again"):
        step(to_batch([Document("a", PROSE, "")]))


WORDS = st.lists(st.sampled_from("abc"), max_size=14)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(items=st.lists(WORDS, max_size=4), texts=st.lists(WORDS, max_size=6), least=st.integers(1, 4))
def test_a_text_is_dropped_if_and_only_if_it_shares_a_run(tmp_path_factory, items, texts, least):
    def has(text, run):
        return any(text[at : at + len(run)] == run for at in range(len(text) - len(run) + 1))

    sought = [run for item in items if len(item) >= least for run in runs_of(item, 4)]
    if not sought:
        return
    path = lines(tmp_path_factory.mktemp("items") / "some.jsonl", *([" ".join(item)] for item in items))
    found = dropped(Decontaminate((path,), ngram=4, min_words=least), *map(" ".join, texts))
    assert set(found) == {str(i) for i, text in enumerate(texts) if any(has(text, run) for run in sought)}


def runs_of(item, n):
    return [item[at : at + n] for at in range(max(1, len(item) - n + 1))]


def test_no_run_is_found_where_there_is_none(tmp_path):
    """Many words in other orders: no hash of theirs is that of an item."""
    random = np.random.default_rng(0)
    vocabulary = [f"word{number}" for number in range(50)]
    texts = [" ".join(random.choice(vocabulary, 400)) for _ in range(200)]
    path = lines(tmp_path / "many.jsonl", *([" ".join(random.choice(vocabulary, 40))] for _ in range(500)))
    assert not dropped(Decontaminate((path,)), *texts)


@pytest.fixture
def curated(items, tmp_path):
    """A config with the folder of items, and where it was curated."""
    assert items.startswith(str(tmp_path / "items"))
    rows = [*({"id": str(n), "text": PROSE + str(n)} for n in range(9)), {"id": "leak", "text": PROSE + QUESTION}]
    lines(tmp_path / "in" / "a.jsonl", *rows)
    recipe = ({"step": "decontaminate", "items": (str(tmp_path / "items"),)},)
    config = DataConfig(str(tmp_path / "in"), recipe=recipe, heldout_fraction=0.3, workers=1)
    assert engine.curate(config, tmp_path / "w")["dropped"] == {"contaminated_sums": 1}
    return config, tmp_path / "w"


def test_what_was_dropped_is_written_with_its_item(curated):
    told = json.loads((curated[1] / "curated" / "dropped.jsonl").read_text())
    assert (told["id"], told["step"]) == ("leak", "decontaminate")
    assert told["detail"].startswith("sums:1, n-grams in common: ")


def test_training_refuses_a_corpus_whose_items_have_changed(curated, tmp_path):
    config, workdir = curated
    engine.require_curated(config, workdir)
    lines(tmp_path / "items" / "more.jsonl", {"question": OTHER})
    with pytest.raises(UserError, match=r"curated is stale: decontaminate: more.jsonl is new .*--rebuild"):
        engine.require_curated(config, workdir)
    (tmp_path / "items" / "more.jsonl").unlink()
    engine.require_curated(config, workdir)
    lines(tmp_path / "items" / "sums.jsonl", {"question": PROSE})
    with pytest.raises(UserError, match=r"curated is stale: decontaminate: sums.jsonl has changed .*--rebuild"):
        engine.require_curated(config, workdir)
    with pytest.raises(UserError, match=r"sums\.jsonl"):
        engine.curate(config, workdir)


def test_items_that_are_gone_are_told_and_not_missed(curated, tmp_path, capsys):
    config, workdir = curated
    (tmp_path / "items" / "sums.jsonl").unlink()
    engine.require_curated(config, workdir)
    assert "not compared with the files of its step decontaminate" in capsys.readouterr().err


def test_one_of_several_items_may_be_gone(tmp_path, capsys):
    for name, item in (("sums", QUESTION), ("more", OTHER)):
        lines(tmp_path / "items" / f"{name}.jsonl", {"question": item})
    lines(tmp_path / "in" / "a.jsonl", *({"id": str(n), "text": PROSE} for n in range(9)))
    recipe = ({"step": "decontaminate", "items": (str(tmp_path / "items"),)},)
    config = DataConfig(str(tmp_path / "in"), recipe=recipe, heldout_fraction=0.3, workers=1)
    engine.curate(config, tmp_path / "w")
    (tmp_path / "items" / "more.jsonl").unlink()
    engine.require_curated(config, tmp_path / "w")
    assert "decontaminate: more.jsonl" in capsys.readouterr().err


def test_files_of_one_name_are_compared_one_by_one(tmp_path):
    paths = [lines(tmp_path / name / "test.jsonl", {"a": QUESTION, "b": name}) for name in ("one", "two")]
    lines(tmp_path / "in" / "a.jsonl", *({"id": str(n), "text": PROSE} for n in range(9)))
    recipe = ({"step": "decontaminate", "items": tuple(paths)},)
    config = DataConfig(str(tmp_path / "in"), recipe=recipe, heldout_fraction=0.3, workers=1)
    engine.curate(config, tmp_path / "w")
    for name in ("one", "two"):
        engine.require_curated(config, tmp_path / "w")
        lines(tmp_path / name / "test.jsonl", {"a": OTHER})
        with pytest.raises(UserError, match=r"test\.jsonl"):
            engine.require_curated(config, tmp_path / "w")
        lines(tmp_path / name / "test.jsonl", {"a": QUESTION, "b": name})


def test_training_refuses_what_an_older_version_of_a_step_decided(curated, monkeypatch):
    config, workdir = curated
    monkeypatch.setattr(Decontaminate, "version", Decontaminate.version + 1)
    with pytest.raises(UserError, match=r"recipe\[0\].version was 1, is 2"):
        engine.require_curated(config, workdir)
