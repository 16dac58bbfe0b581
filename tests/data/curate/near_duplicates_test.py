"""Near-duplicates in a whole curation: over partitions, sources and generations, after a kill, by any batches."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from data.config import DataConfig
from data.curate import engine, partition
from data.document import id_hash, read_documents

pytest.importorskip("daft")
WORDS = [
    "".join(letters) for letters in itertools.product("abcdefghijkl", repeat=3)
]  # numbers do not tell texts apart
GROUPS, COPIES = 6, 3


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three sources; each has its own text of each group, a few words changed, and one of its own."""
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 3)
    random = np.random.default_rng(0)
    groups = [random.choice(WORDS, 300) for _ in range(GROUPS)]
    for copy in range(COPIES):
        folder = tmp_path / f"in{copy}"
        folder.mkdir()
        for number, words in enumerate(groups):
            changed = words.copy()
            changed[random.integers(0, 300, copy)] = "changed"
            (folder / f"{number}.txt").write_text(" ".join(changed) + "\n")
        (folder / "own.txt").write_text(" ".join(random.choice(WORDS, 300)) + "\n")
    return tmp_path


def config(folders, copies=COPIES, keep="first", **changed):
    sources = {f"s{copy}": str(folders / f"in{copy}") for copy in range(copies)}
    recipe = ({"step": "minhash", "method": "fast", "keep": keep}, {"step": "exact_duplicates"})
    return DataConfig(
        **{"sources": sources, "recipe": recipe, "shards": 2, "heldout_fraction": 0.3, "workers": 1, **changed}
    )


def kept(folder):
    return {d.id: d for path in folder.glob("curated/*.parquet") for d in read_documents(path)}


def dropped(folder):
    return [json.loads(line) for line in (folder / "curated" / "dropped.jsonl").read_text().splitlines()]


def test_one_of_each_group_stays(folders):
    summary = engine.curate(config(folders), folders / "w")
    assert summary["dropped"] == {"near_duplicate": GROUPS * (COPIES - 1)}
    stays = kept(folders / "w")
    names = [identifier.split("/")[1] for identifier in stays]
    assert sorted(names) == sorted([f"{number}.txt" for number in range(GROUPS)] + ["own.txt"] * COPIES)
    for one in dropped(folders / "w"):
        assert one["step"] == "minhash"
        assert one["detail"] in stays
        assert one["detail"].split("/")[1] == one["id"].split("/")[1]
    assert all("minhash" not in document.meta for document in stays.values())


def test_of_an_id_that_is_there_twice_the_first_counts(folders):
    """Whatever the second is near to: it is dropped for its id, and the first is not for what the second is."""
    copy = (folders / "in0" / "0.txt").read_text().replace("a", "b", 1)
    texts = {"x": (folders / "in0" / "own.txt").read_text(), "short": "too short"}
    rows = [{"id": "x", "text": texts["x"]}, {"id": "s", "text": texts["short"]}]
    (folders / "in0" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folders / "in0" / "own.txt").unlink()
    again = [{"id": one, "text": copy} for one in "xs"]
    (folders / "in0" / "b.jsonl").write_text("\n".join(map(json.dumps, again)))
    engine.curate(config(folders, copies=1), folders / "w")
    found = {one: document.text for one, document in kept(folders / "w").items()}
    assert (found["s0/x"], found["s0/s"]) == (texts["x"], texts["short"])
    assert [(one["id"], one["reason"]) for one in dropped(folders / "w")] == [
        (f"s0/{one}", "duplicate_id") for one in sorted("xs", key=lambda one: id_hash(f"s0/{one}", "order"))
    ]


def test_the_longest_stays(folders):
    for number in range(GROUPS):
        path = folders / "in1" / f"{number}.txt"
        path.write_text(path.read_text() + " and more\n")
    engine.curate(config(folders, keep="longest"), folders / "w")
    assert {identifier for identifier in kept(folders / "w") if "own" not in identifier} == {
        f"s1/{number}.txt" for number in range(GROUPS)
    }


def test_workers_batches_and_a_kill_change_nothing(folders, monkeypatch):
    whole = engine.curate(config(folders), folders / "a")
    assert engine.curate(config(folders, workers=2), folders / "b")["hashes"] == whole["hashes"]
    monkeypatch.setattr(partition, "BATCH_ROWS", 1)
    monkeypatch.setattr(partition, "RUN_CHARS", 1000)
    assert engine.curate(config(folders), folders / "c")["hashes"] == whole["hashes"]
    for place in ("find_near_duplicates", "write_splits"):
        with monkeypatch.context() as patch:
            patch.setattr(engine, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                engine.curate(config(folders), folders / f"killed-{place}")
        assert engine.curate(config(folders), folders / f"killed-{place}")["hashes"] == whole["hashes"]


def test_what_is_added_is_compared_with_what_was_there(folders):
    first = config(folders, copies=2)
    before = engine.curate(first, folders / "w")
    more = dataclasses.replace(first, added=({"s2": str(folders / "in2")},))
    assert engine.curate(more, folders / "w") == before
    assert list(kept(folders / "w" / "added-1")) == ["added-1/s2/own.txt"]
    assert {one["detail"] for one in dropped(folders / "w" / "added-1")} <= kept(folders / "w").keys()


def test_a_partition_without_its_signatures_is_made_again(folders, monkeypatch):
    whole = engine.curate(config(folders), folders / "a")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "find_near_duplicates", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.curate(config(folders), folders / "b")
    next((folders / "b" / "curated" / "signatures").iterdir()).unlink()
    assert engine.curate(config(folders), folders / "b")["hashes"] == whole["hashes"]
