"""Curated corpora for others: what is written is what was curated, and comes back as it went."""

import json
import pickle
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import tensorflow_datasets

from core.errors import UserError
from core.files import hash_file, read_json
from data import curated, export
from data.config import DataConfig
from data.curate.engine import curate
from data.document import Document, read_documents
from data.export import export_data
from data.sources import folder, tfds
from data.tfds_builder import QuintetCorpus
from lab import ROOT, launch, make_corpus

TALK = [
    {"role": "user", "content": "Is {} prime?"},
    {"role": "assistant", "content": "Ask again.", "reasoning_content": "Is it?"},
]


def make(place, **changes):
    """A corpus with conversations in which documents were added once; its config."""
    place.mkdir()
    records = [
        {
            "id": f"d{number}",
            "text": f"the text of é number {number}",
            "url": f"https://x.org/{number}",
            "license": ["CC0-1.0", "a|b\n---\n<b>", ""][number % 3],
            "language": ["en", "no", "", "tlh-x"][number % 4],
            "date": "2020-01-02",
        }
        for number in range(60)
    ]
    talk = [{**TALK[0], "content": TALK[0]["content"].format(number)} for number in range(20)]
    talks = [
        {"id": f"t{number}", "messages": [turn, TALK[1]], "tools": [{"name": "f"}], "reasoning": "x"}
        for number, turn in enumerate(talk)
    ]
    more = [{"id": f"m{number}", "text": f"more, namely {number}"} for number in range(12)]
    for name, rows in {"text": records, "talk": talks, "more": more}.items():
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "sources": {name: str(place / f"{name}.jsonl") for name in ("text", "talk")},
        "added": ({"more": str(place / "more.jsonl")},),
        "heldout_fraction": 0.2,
        "shards": 2,
        "workers": 1,
        "recipe": ({"step": "length", "min_chars": 5},),
        **changes,
    }
    return DataConfig(**given)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A corpus with what was added, exported; not to be changed."""
    place = tmp_path_factory.mktemp("export")
    config = make(place / "in")
    curate(config, place / "work")
    export_data(config, place / "work")
    return place / "work"


@pytest.fixture
def copy(workdir, tmp_path):
    """The same, to be changed, and its config."""
    shutil.copytree(workdir, tmp_path / "work")
    return tmp_path / "work", make(tmp_path / "in")


def documents(workdir, split):
    """As they were curated, then as they were added."""
    folders = [workdir / "curated", workdir / "added-1" / "curated"]
    return [one for where in folders for path in sorted(where.glob(f"{split}-*")) for one in read_documents(path)]


def in_columns(document):
    return {**vars(document), "meta": json.dumps(document.meta)}


def hashes(place):
    return {str(path.relative_to(place)): hash_file(path) for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_parquet_files_hold_what_was_curated(workdir, split):
    files = sorted((workdir / "export-data" / "parquet" / "data").glob(f"{split}-*"))
    assert [path.name for path in files] == [f"{split}-00000-of-00001.parquet"]
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert rows == [in_columns(document) for document in documents(workdir, split)]
    assert {type(value) for row in rows for value in row.values()} == {str}
    assert any("messages" in json.loads(row["meta"]) for row in rows)
    assert {row["source"] for row in rows} == {"text", "talk", "more"}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tfds_finds_it_by_name_and_by_folder(workdir, split):
    data_dir = workdir / "export-data" / "tfds"
    wanted = [in_columns(document) for document in documents(workdir, split)]
    named = tensorflow_datasets.data_source("quintet_corpus:1.0.0", split=split, data_dir=data_dir)
    placed = tensorflow_datasets.builder_from_directory(data_dir / "quintet_corpus" / "1.0.0").as_data_source(split)
    for source in (named, placed):
        assert len(source) == len(wanted)
        assert {name: value.decode() for name, value in source[len(wanted) - 2].items()} == wanted[-2]
        assert [{name: value.decode() for name, value in row.items()} for row in source] == wanted
    assert pickle.loads(pickle.dumps(named))[1] == named[1]


def test_others_read_it_without_our_code_and_without_tensorflow(workdir, tmp_path):
    program = f"""
import sys
import tensorflow_datasets as tfds
found = tfds.data_source("quintet_corpus", data_dir={str(workdir / "export-data" / "tfds")!r})
assert sorted(found) == ["heldout", "train"]
print(found["train"][3]["id"].decode())
assert "tensorflow" not in sys.modules and "data" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == documents(workdir, "train")[3].id


@pytest.mark.parametrize("kind", ["parquet", "tfds"])
def test_what_was_exported_is_read_as_it_went(workdir, kind):
    place = workdir / "export-data" / kind
    source, root = (tfds, f"tfds:{place}@all") if kind == "tfds" else (folder, place / "data")
    found = {item.id: item for partition in source.partitions(root) for item in source.read(root, partition)}
    wanted = documents(workdir, "train") + documents(workdir, "heldout")
    assert len(found) == len(wanted)
    for document in wanted:
        item = found[document.id]
        assert isinstance(item, Document)
        for name in ("id", "text", "url", "language", "license"):
            assert getattr(item, name) == getattr(document, name)
        assert item.source == kind
        assert item.meta == (document.meta if "messages" in document.meta else {})
    assert sum("messages" in item.meta for item in found.values()) == 20


def test_messages_count_only_where_they_are_what_the_text_says(workdir, tmp_path):
    talk = next(item for item in documents(workdir, "train") if "messages" in item.meta)
    for text, meta in (
        ("other words", json.dumps(talk.meta)),
        (talk.text, json.dumps({"messages": "none", "variables": {}})),
        (talk.text, json.dumps({"messages": talk.meta["messages"], "variables": 3})),
        (talk.text, '{"messages": ' + "[" * 100_000),
        (talk.text, '["messages"]'),
    ):
        path = tmp_path / "a.parquet"
        pq.write_table(pq.ParquetFile(next((workdir / "curated").glob("train-*"))).read().slice(0, 1), path)
        table = pq.read_table(path).to_pylist()
        pq.write_table(type(pq.read_table(path)).from_pylist([{**table[0], "text": text, "meta": meta}]), path)
        (item,) = folder.read(path, ["a.parquet"])
        assert (item.text, item.meta) == (text, {})


def test_the_same_corpus_gives_the_same_bytes(workdir, tmp_path):
    """In another process too, where protobuf and sets have other orders."""
    shutil.copytree(workdir, tmp_path / "work", ignore=shutil.ignore_patterns("export-data"))
    program = f"""
from pathlib import Path
from data.export import _prepare, _write_parquet
from data.curated import pieces
work = Path({str(tmp_path / "work")!r})
folders = [work / "curated", work / "added-1" / "curated"]
_write_parquet(work / "export-data" / "parquet", pieces(folders))
_prepare(folders, work / "export-data" / "tfds")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)
    ours, theirs = hashes(workdir / "export-data"), hashes(tmp_path / "work" / "export-data")
    assert ours.keys() - theirs.keys() == {"manifest.json", "parquet/README.md"}
    assert theirs == {name: ours[name] for name in theirs}


def test_a_finished_export_stays_and_a_harmed_one_is_made_again(copy, capsys):
    work, config = copy
    before = hashes(work / "export-data")
    export_data(config, work)
    assert "is up to date" in capsys.readouterr().err
    (work / "export-data" / "parquet" / "data" / "train-00000-of-00001.parquet").write_bytes(b"")
    (work / "export-data" / "tfds" / "quintet_corpus" / "incomplete.ABC_1.0.0").mkdir()
    export_data(config, work)
    assert hashes(work / "export-data") == before
    assert [path.name for path in (work / "export-data" / "tfds" / "quintet_corpus").iterdir()] == ["1.0.0"]


def test_another_corpus_takes_its_place(copy):
    work, config = copy
    shutil.rmtree(work / "curated")
    shutil.rmtree(work / "added-1")
    config = make(work.parent / "other", added=(), heldout_fraction=0.5)
    curate(config, work)
    export_data(config, work)
    sizes = read_json(work / "export-data" / "manifest.json")["summary"]
    assert sum(size["documents"] for size in sizes.values()) == 80
    found = tensorflow_datasets.data_source("quintet_corpus:1.0.0", data_dir=work / "export-data" / "tfds")
    assert {split: len(source) for split, source in found.items()} == {
        split: size["documents"] for split, size in sizes.items()
    }


def test_a_large_corpus_is_several_files(copy, monkeypatch):
    work, config = copy
    shutil.rmtree(work / "export-data")
    monkeypatch.setattr(curated, "PIECE_BYTES", 1)
    export_data(config, work)
    names = sorted(path.name for path in (work / "export-data" / "parquet" / "data").iterdir())
    assert names == [
        *(f"heldout-0000{number}-of-00002.parquet" for number in range(2)),
        *(f"train-0000{number}-of-00004.parquet" for number in range(4)),
    ]
    found = tensorflow_datasets.data_source("quintet_corpus:1.0.0", data_dir=work / "export-data" / "tfds")
    assert [row["id"].decode() for row in found["train"]] == [item.id for item in documents(work, "train")]
    root = f"tfds:{work / 'export-data' / 'tfds'}"
    assert {piece.file for partition in tfds.partitions(root) for piece in partition} == {
        f"quintet_corpus-train.array_record-0000{number}-of-00004" for number in range(4)
    }


def test_without_tfds_there_is_parquet_and_a_line(copy, monkeypatch, capsys):
    work, config = copy
    with monkeypatch.context() as patch:
        patch.setattr(export.importlib.util, "find_spec", lambda _: None)
        export_data(config, work)
    assert "pip install -e .[tfds]" in capsys.readouterr().err
    assert sorted(path.name for path in (work / "export-data").iterdir()) == ["manifest.json", "parquet"]
    export_data(config, work)
    assert (work / "export-data" / "tfds" / "quintet_corpus" / "1.0.0" / "features.json").exists()


def test_the_builder_prepares_what_it_is_given(workdir, tmp_path):
    builder = QuintetCorpus(curated=[str(workdir / "curated")], data_dir=tmp_path)
    builder.download_and_prepare()
    source = builder.as_data_source("heldout")
    assert len(source) == sum(1 for _ in read_documents(workdir / "curated" / "heldout-00000.parquet"))
    assert pickle.loads(pickle.dumps(builder)).info.splits["heldout"].num_examples == len(source)
    again = tensorflow_datasets.data_source("quintet_corpus", split="heldout", data_dir=tmp_path)  # now by our class
    assert again[0] == source[0]
    with pytest.raises(UserError, match="holds no curated documents; name some"):
        QuintetCorpus(data_dir=tmp_path / "other").download_and_prepare()


def test_a_damaged_shard_is_told(copy):
    work, config = copy
    shutil.rmtree(work / "export-data")
    path = work / "curated" / "train-00001.parquet"
    payload = path.read_bytes()
    path.write_bytes(payload[:-8])
    with pytest.raises(UserError, match=r"train-00001.parquet is missing or not"):
        export_data(config, work)
    path.write_bytes(b"\0" * len(payload))
    with pytest.raises(UserError, match=r"train-00001.parquet cannot be read \(.*\); curate again"):
        export_data(config, work)
    assert not (work / "export-data" / "parquet" / "README.md").exists()


def test_the_verb_needs_curated_documents_of_its_config(tmp_path):
    words = [
        f"--config={ROOT / 'experiments' / 'smoke.py'}",
        f"--workdir={tmp_path / 'work'}",
        f"--config.data.path={make_corpus(tmp_path / 'in')}",
        "--config.data.heldout_fraction=0.2",
    ]
    assert launch("curate", *words).returncode == 0
    result = launch("export-data", *words)
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    assert "datasets.load_dataset(" in result.stderr
    assert "tfds.data_source('quintet_corpus'" in result.stderr
    refused = launch("export-data", *words, "--config.data.shards=3")
    assert refused.returncode == 2
    assert "data.shards was 4, is 3" in refused.stderr
