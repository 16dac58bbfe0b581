import dataclasses
import json
import resource
import tracemalloc

import pytest

from core.errors import UserError, explain
from core.files import read_json
from curate_lab import OWN_STEP
from data.config import DataConfig
from data.curate import engine, partition
from data.curate.tally import Tally
from data.document import Document, Dropped, id_hash, read_documents
from lab import make_corpus

RECIPE = ({"step": "length", "min_chars": 20}, {"step": "exact_duplicates"})


def config(path, **changes):
    return DataConfig(
        **{"path": str(path), "recipe": RECIPE, "shards": 2, "heldout_fraction": 0.3, "workers": 1, **changes}
    )


def all_documents(workdir, pattern):
    return [d for path in sorted((workdir / "curated").glob(pattern)) for d in read_documents(path)]


def test_every_document_is_kept_once_or_dropped_for_a_reason(tmp_path):
    root = make_corpus(tmp_path / "in")
    (root / "short.txt").write_text("tiny")
    (root / "copy.txt").write_text((root / "000.txt").read_text())
    (root / "latin.txt").write_bytes(b"\xe9" * 50)
    summary = engine.curate(config(root), tmp_path / "w")
    train, heldout = all_documents(tmp_path / "w", "train-*"), all_documents(tmp_path / "w", "heldout-*")
    dropped = [json.loads(line) for line in (tmp_path / "w/curated/dropped.jsonl").read_text().splitlines()]
    assert len(train) + len(heldout) == 12
    assert len(heldout) > 0
    assert summary["dropped"] == {"too_short": 1, "exact_duplicate": 1, "undecodable": 1}
    assert {entry["reason"] for entry in dropped} == set(summary["dropped"])
    ids = {document.id for document in train} | {document.id for document in heldout}
    assert len(ids | {entry["id"] for entry in dropped}) == 15
    assert summary["train"] == {"documents": len(train), "bytes": sum(len(d.text.encode()) for d in train)}
    assert summary["sources"]["text"]["dropped:undecodable"] == 1


def test_shards_are_in_hash_order(tmp_path):
    engine.curate(config(make_corpus(tmp_path / "in")), tmp_path / "w")
    hashes = [id_hash(document.id, "order") for document in all_documents(tmp_path / "w", "train-*")]
    assert hashes == sorted(hashes)


def test_the_split_depends_on_ids_alone(tmp_path):
    """More documents, other shards, other workers: nobody changes sides."""
    root = make_corpus(tmp_path / "in")
    engine.curate(config(root), tmp_path / "a")
    before = {document.id for document in all_documents(tmp_path / "a", "heldout-*")}
    for number in range(5):
        (root / f"new{number}.txt").write_text(f"another document, number {number}, of some length\n")
    engine.curate(config(root, shards=3, workers=2), tmp_path / "b")
    after = {document.id for document in all_documents(tmp_path / "b", "heldout-*")}
    assert {identifier for identifier in after if not identifier.startswith("new")} == before


def test_the_result_does_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 2)
    root = make_corpus(tmp_path / "in")
    one = engine.curate(config(root), tmp_path / "a")
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 5)
    other = engine.curate(config(root), tmp_path / "b")
    assert one["hashes"] == other["hashes"]


def test_runs_that_are_merged_in_groups_first_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 1)
    root = make_corpus(tmp_path / "in")
    at_once = engine.curate(config(root), tmp_path / "a")
    monkeypatch.setattr("data.curate.runs.FAN_IN", 2)
    assert engine.curate(config(root), tmp_path / "b")["hashes"] == at_once["hashes"]


def test_a_change_of_a_users_own_step_makes_the_corpus_stale(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "own_steps.py"
    module.write_text(OWN_STEP)
    own = config(make_corpus(tmp_path / "in"), recipe=({"step": "own_steps:Shouting"},))
    engine.curate(own, tmp_path / "w")
    engine.require_curated(own, tmp_path / "w")
    module.write_text(OWN_STEP.replace("0.3", "0.4"))
    with pytest.raises(UserError, match=r"own_steps:Shouting: own_steps.py has changed since it was made"):
        engine.require_curated(own, tmp_path / "w")
    with pytest.raises(UserError, match="own_steps"):
        engine.curate(own, tmp_path / "w")


def test_an_addition_of_which_nothing_is_new_is_named(tmp_path):
    root = make_corpus(tmp_path / "in")
    recipe = ({"step": "exact_duplicates"},)
    own = config(root, recipe=recipe, added=({"again": str(root)},))
    with pytest.raises(UserError, match=r"adds nothing \(dropped: exact_duplicate \d+\); take it out"):
        engine.curate(own, tmp_path / "w")


def test_an_interrupted_run_continues_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 2)
    root = make_corpus(tmp_path / "in")
    whole = engine.curate(config(root), tmp_path / "a")
    done, run_partition = [], engine._run_partition

    def stop_after_three(task):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task[-1].name)
        run_partition(task)

    monkeypatch.setattr(engine, "_run_partition", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        engine.curate(config(root), tmp_path / "b")
    again = []
    monkeypatch.setattr(engine, "_run_partition", lambda task: (again.append(task[-1].name), run_partition(task)))
    resumed = engine.curate(config(root), tmp_path / "b")
    assert resumed["hashes"] == whole["hashes"]
    assert len(again) == 3
    assert not set(again) & set(done)


def test_a_full_disk_in_a_worker_is_one_line_and_the_same_command_goes_on(tmp_path):
    """No file can grow beyond 64 KiB, as on a full disk none can; of two workers it stops one."""
    few, many = make_corpus(tmp_path / "few"), make_corpus(tmp_path / "many", files=40, sentences=200)
    given = config("", sources={"few": str(few), "many": str(many)}, workers=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            engine.curate(given, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    parts = tmp_path / "w" / "curated" / "parts"
    told = f"{parts / '00001-000.parquet'}: the file is larger than the system allows"
    assert explain(failure.value) == (told, 2)
    assert sorted(path.name for path in parts.iterdir()) == [
        "00000-000.parquet",
        "00000.dropped.jsonl",
        "00000.json",
    ]
    resumed = engine.curate(given, tmp_path / "w")
    assert resumed == engine.curate(dataclasses.replace(given, workers=1), tmp_path / "whole")


def test_changed_input_is_noticed(tmp_path):
    root = make_corpus(tmp_path / "in")
    engine.curate(config(root), tmp_path / "w")
    (root / "000.txt").write_text("something else, of another size\n")
    with pytest.raises(UserError, match=r"curated was made from something else \(input.files"):
        engine.curate(config(root), tmp_path / "w")


def test_one_document_is_too_few_and_two_are_enough(tmp_path):
    root = make_corpus(tmp_path / "one", files=1)
    with pytest.raises(UserError, match="leaves 0 documents to train on and 1 held out"):
        engine.curate(config(root, heldout_fraction=1e-6), tmp_path / "a")
    summary = engine.curate(config(make_corpus(tmp_path / "two", files=2), heldout_fraction=1e-6), tmp_path / "b")
    assert summary["train"]["documents"] == summary["heldout"]["documents"] == 1


def test_a_corpus_of_bad_files_says_what_was_dropped(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"dropped: undecodable 1"):
        engine.curate(config(root), tmp_path / "w")


def test_a_repeated_id_is_dropped(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    rows = [{"id": str(number % 6), "text": f"document number {number} says something"} for number in range(8)]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = engine.curate(config(root), tmp_path / "w")
    assert summary["dropped"] == {"duplicate_id": 2}


def test_the_last_document_held_out_is_not_one_that_is_dropped_as_a_copy(tmp_path):
    """Whichever of two copies has the smaller hash, something stays held out."""
    for seed in range(6):
        root = tmp_path / f"in{seed}"
        root.mkdir()
        for number in range(4):
            (root / f"{seed}-{number}.txt").write_text(f"text number {number // 2} of the seed {seed}, long enough\n")
        summary = engine.curate(config(root, heldout_fraction=1e-6), tmp_path / f"w{seed}")
        assert summary["heldout"]["documents"] == summary["train"]["documents"] == 1


def test_memory_is_bounded_by_runs_and_the_result_is_the_same(tmp_path, monkeypatch):
    root = make_corpus(tmp_path / "in")
    one = engine.curate(config(root), tmp_path / "a")
    monkeypatch.setattr(partition, "RUN_CHARS", 1000)
    monkeypatch.setattr(partition, "BATCH_ROWS", 2)
    many = []
    write = partition.write_json
    monkeypatch.setattr(partition, "write_json", lambda path, value: (many.extend(value["runs"]), write(path, value)))
    assert engine.curate(config(root), tmp_path / "b")["hashes"] == one["hashes"]
    assert len(many) > 5


@pytest.mark.parametrize("ending", ["parquet", "dropped.jsonl"])
def test_a_damaged_part_is_made_again(tmp_path, monkeypatch, ending):
    root = make_corpus(tmp_path / "in")
    (root / "short.txt").write_text("tiny")
    whole = engine.curate(config(root), tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.curate(config(root), tmp_path / "b")
    (part,) = (tmp_path / "b" / "curated" / "parts").glob(f"*.{ending}")
    part.write_bytes(part.read_bytes()[:50])
    assert engine.curate(config(root), tmp_path / "b") == whole
    drops = [(tmp_path / name / "curated" / "dropped.jsonl").read_bytes() for name in "ab"]
    assert drops[0] == drops[1] != b""


def test_drops_are_not_held_in_memory(tmp_path):
    """Of a partition that drops most of what it reads, and of what a source cannot read."""
    where = tmp_path / "parts"

    def items(count):
        for number in range(count):
            yield Dropped(f"bad {number}\r\u2028", "jsonl", "not_json", 9, detail=f"{number:01000d}")
            yield Document(f"short {number}", "tiny", "jsonl")

    tracemalloc.start()
    try:
        read = partition.curate_partition(items(3000), RECIPE, where / "00000.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == 3000
    assert peak < 2 << 20  # while the details alone have 3 MB
    found = list(partition.read_drops(partition.drops_of(where / "00000.json")))
    assert len(found) == 6000
    assert found[0].id == "bad 0\r\u2028"
    assert {one.reason for one in found} == {"not_json", "too_short"}
    with (tmp_path / "dropped.jsonl").open("w", encoding="utf-8") as file:
        tally = Tally(file)
        tally.add_part(read_json(where / "00000.json"), found)
    assert (tmp_path / "dropped.jsonl").read_bytes() == (where / "00000.dropped.jsonl").read_bytes()
    assert tally.summary()["dropped"] == {"not_json": 3000, "too_short": 3000}


def test_documents_are_counted_on_a_cluster_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "cluster_map", lambda function, tasks, _: map(function, tasks))
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 5)
    engine.curate(config(make_corpus(tmp_path / "in"), cluster="auto"), tmp_path / "w")
    assert "curate: 12 documents in " in capsys.readouterr().err


def test_columns_of_a_config_reach_the_files_and_decide(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    lines = [json.dumps({"content": f"the text of document {number}", "id": str(number)}) for number in range(12)]
    (root / "a.jsonl").write_text("\n".join(lines))
    named = config(root, columns={"text": "content"})
    assert engine.curate(named, tmp_path / "w")["dropped"] == {}
    assert all_documents(tmp_path / "w", "*.parquet")[0].text.startswith("the text of document")
    with pytest.raises(UserError, match="columns"):
        engine.require_curated(config(root), tmp_path / "w")
    with pytest.raises(ValueError, match=r"columns: .txt. is no part of a document; did you mean text"):
        config(root, columns={"txt": "content"})


def test_built_in_sources_have_no_other_columns():
    mixed = DataConfig(sources={"a": "", "b": "python:chat"}, columns={"text": "content"})
    assert [given.options for given in engine._inputs(mixed)] == [{}, {}]
