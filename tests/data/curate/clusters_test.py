import collections
import gzip
import hashlib
import itertools
import os
import pydoc_data.topics
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.curate import clusters, forest, shuffle, signatures
from data.curate.forest import Forest
from data.curate.minhash import MinHash
from data.curate.partition import to_batch
from data.document import Document, id_hash
from lab import real

pytest.importorskip("daft")
STEP = MinHash(buckets=2, hashes_per_bucket=2)
EVERYTHING = -(2**63), 2**63 - 1


def write(path, rows, step=STEP):
    """A file of signatures from rows of id, order, chars and hashes."""
    columns = [list(column) for column in zip(*(row[:3] for row in rows))] or [[], [], []]
    hashes = [np.array(row[3], "<u8").tobytes() for row in rows]
    table = pa.table([*columns, hashes], schema=signatures.schema(step))
    pq.write_table(table, path)
    return path


def plain(files, first, last, on="native", address=None):
    """What `shuffle.repeated` promises."""
    del on, address
    rows = sorted(zip(*(column.to_pylist() for column in pa.concat_tables(map(pq.read_table, files)).columns)))
    rows = [row for row in rows if first <= row[0] <= last]
    counts = collections.Counter(row[:2] for row in rows)
    rows = [row for row in rows if counts[row[:2]] > 1]
    return pa.table([list(column) for column in zip(*rows)] or [[], [], []], schema=shuffle.SCHEMA)


def components(rows):
    """Sets of places, from each place outward along equal buckets."""
    edges = {key: [] for row in rows for key in ((0, row[3][:2]), (1, row[3][2:]))}
    for place, row in enumerate(rows):
        edges[0, row[3][:2]].append(place)
        edges[1, row[3][2:]].append(place)
    near = [edges[0, row[3][:2]] + edges[1, row[3][2:]] for row in rows]
    found = {}
    for start in range(len(rows)):
        todo = [start] if start not in found else []
        while todo:
            place = todo.pop()
            if place not in found:
                found[place] = start
                todo += near[place]
    return [[place for place in found if found[place] == start] for start in sorted(set(found.values()))]


def expected(known, new, keep):
    """All members that are told, by the definition."""
    rows, told = [*known, *new], []
    for places in components(rows):
        old = [place for place in places if place < len(known)]
        rank = (lambda p: (-rows[p][2], *rows[p][1::-1])) if keep == "longest" else (lambda p: rows[p][1::-1])
        kept = min(old or places, key=rank)
        if len(places) > 1:
            told += [(*rows[p][:2], p != kept, rows[kept][0], len(places)) for p in places if p not in old]
    return sorted(told, key=lambda one: one[1::-1])


HASHES = st.tuples(*[st.sampled_from([0, 1, 2, 2**61 - 2])] * 4)
ROWS = st.lists(st.tuples(st.sampled_from([0, 5, 2**63, 2**64 - 1]), st.integers(0, 3), HASHES), max_size=24)


@settings(deadline=None, max_examples=120)
@given(rows=ROWS, data=st.data())
def test_clusters_are_the_connected_parts_whatever_the_files(rows, data, tmp_path_factory):
    rows = [(f"{'ab'[i % 2]}{i}é", *row) for i, row in enumerate(rows)]
    old = data.draw(st.integers(0, len(rows)))
    keep = data.draw(st.sampled_from(["first", "longest"]))
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    where = tmp_path_factory.mktemp("clusters")
    parts = {(kind, owner): [] for kind in (True, False) for owner in range(3)}
    for place, row in enumerate(rows):
        parts[place < old, owners[place]].append(row)
    files = {part: write(where / f"{part[0]}-{part[1]}.parquet", own) for part, own in parts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "repeated", plain)
        patch.setattr(forest, "CHUNK", data.draw(st.integers(2, 9)))
        for name in ("WRITTEN", "SHUFFLED", "IN_ORDER", "READ"):
            patch.setattr(clusters, name, data.draw(st.integers(2, 9), label=name))
        known, new = ([path for (of, _), path in files.items() if of == kind] for kind in (True, False))
        found = list(clusters.members(new, known, where, keep))
    assert [tuple(one) for one in found] == expected(rows[:old], rows[old:], keep)
    assert not (where / ".clusters").exists()


def test_daft_brings_together_what_shares_a_key(tmp_path):
    rng = np.random.default_rng(0)
    high, low = (rng.choice([-(2**63), -1, 0, 5, 2**63 - 1], 400) for _ in range(2))
    table = pa.table([high, low * rng.integers(0, 20, 400), np.arange(400)], schema=shuffle.SCHEMA)
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for file, part in zip(files, (slice(0, 0), slice(0, 150), slice(150, 400))):
        pq.write_table(table.take(np.arange(400)[part]), file, row_group_size=7)
    for first, last in (EVERYTHING, (-(2**63), -2), (-1, 5), (6, 2**63 - 1), (1, 2)):
        found = shuffle.repeated(files, first, last)
        assert found.equals(plain(files, first, last))
        assert found.schema == shuffle.SCHEMA


def test_daft_is_told_of_the_cluster_and_to_say_nothing(monkeypatch):
    daft, asked = shuffle._runner("native", None), []
    assert os.environ["DAFT_ANALYTICS_ENABLED"] == "0"
    monkeypatch.setattr(daft, "set_runner_ray", asked.append)
    assert shuffle._runner.__wrapped__("ray", "ray://head:10001") is daft
    assert asked == ["ray://head:10001"]

    def missing(_):
        raise ModuleNotFoundError("No module named 'ray'")

    monkeypatch.setattr(daft, "set_runner_ray", missing)
    with pytest.raises(UserError, match=r"pip install 'daft\[ray\]'"):
        shuffle._runner.__wrapped__("ray", None)


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.binary(max_size=150), max_size=40))
def test_hashes_are_the_first_half_of_sha1(values):
    want = [int.from_bytes(hashlib.sha1(value).digest()[:8], "little") for value in values]
    assert shuffle.sha1(pa.array(values, pa.binary())).tolist() == want


def test_a_daft_that_hashes_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(shuffle, "_hashed", lambda values, expression: np.zeros(1, np.uint64))  # noqa: ARG005
    with pytest.raises(UserError, match="does not give the hashes of FineWeb's signatures"):
        shuffle._sha1.__wrapped__()


@settings(deadline=None, max_examples=200)
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12), max_size=4))
def test_a_forest_joins_pairs(batches, tmp_path_factory):
    trees = Forest(20, tmp_path_factory.mktemp("forest") / "parents")
    sets = [{number} for number in range(20)]
    for pairs in batches:
        trees.join(*np.array(pairs, np.int64).reshape(-1, 2).T)
        for left, right in pairs:
            whole = next(s for s in sets if left in s) | next(s for s in sets if right in s)
            sets = [s for s in sets if not s & whole] + [whole]
    assert trees.flat().tolist() == [min(next(s for s in sets if number in s)) for number in range(20)]


def test_long_chains_are_joined_in_few_rounds(tmp_path, monkeypatch):
    """A chain hung on itself link by link would take as many rounds as it has links."""
    count, rounds = 1 << 16, []
    trees = Forest(count, tmp_path / "parents")
    monkeypatch.setattr(np, "array_equal", lambda a, b, equal=np.array_equal: rounds.append(1) or equal(a, b))
    numbers = np.arange(count)
    trees.join(numbers[:-1], numbers[1:])
    trees.join(*np.random.default_rng(0).permutation(count)[: count // 2 * 2].reshape(2, -1))
    assert len(rounds) < 100
    assert not trees.flat().any()


def test_buckets_of_other_hashes_have_other_keys():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**61, 8, np.uint64)
    others = np.tile(base, (8 * 61 + 1, 1))
    for bit in range(8 * 61):
        others[bit, bit // 61] ^= np.uint64(1 << bit % 61)
    swapped = np.array([base[list(order)] for order in itertools.islice(itertools.permutations(range(8)), 1, 2000)])
    keys = clusters.bucket_keys(np.concatenate([others, swapped]), 1)
    assert len({bytes(key) for key in keys}) == len(keys)
    assert len(set(keys[:, 0, 0].tolist())) == len(set(keys[:, 0, 1].tolist())) == len(keys)
    high = np.sort(clusters.bucket_keys(rng.integers(0, 2**61, (4096, 8), np.uint64), 1)[:, 0, 0] >> 60)
    assert np.bincount(high + 8, minlength=16).min() > 180  # ranges of them are of equal size


def test_the_writer_takes_signatures_off_a_batch(tmp_path):
    step = MinHash()
    texts = ["one two three four five six", "too short", "one two three four five six", "née à l'aube d'un jour"]
    batch = step(to_batch([Document(f"d{i}", text, "") for i, text in enumerate(texts)])).batch
    with signatures.SignatureWriter(tmp_path / "a.parquet", step) as writer:
        rest = writer.take(batch.slice(1))
        assert rest.column_names == to_batch([]).column_names
        assert rest.num_rows == 3
        writer.take(batch.slice(0, 1))
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["d1", "d2", "d3", "d0"]
    assert [row["chars"] for row in rows] == [9, 27, 22, 27]
    assert rows.pop(0)["minhash"] is None
    assert rows[0]["order"] == id_hash("d2", "order")
    assert rows[0]["minhash"] == rows[2]["minhash"] == batch.column("minhash")[0].as_py()
    (found,) = clusters.duplicates([tmp_path / "a.parquet"], [], tmp_path)
    first, second = sorted(["d0", "d2"], key=lambda one: id_hash(one, "order"))
    assert (found.id, found.kept, found.size, found.order) == (second, first, 2, id_hash(second, "order"))


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail():
        with signatures.SignatureWriter(tmp_path / "a.parquet", STEP):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_compared_are_refused(tmp_path):
    one = write(tmp_path / "one.parquet", [("a", 0, 1, (1, 2, 3, 4))])
    other = write(
        tmp_path / "other.parquet", [("b", 0, 1, (1, 2, 3, 4))], MinHash(buckets=2, hashes_per_bucket=2, seed=2)
    )
    german = write(
        tmp_path / "de.parquet", [("c", 0, 1, (1, 2, 3, 4))], MinHash(language="de", buckets=2, hashes_per_bucket=2)
    )
    with pytest.raises(UserError, match=r"other.parquet has MinHash signatures of seed=2, .*one.parquet of seed=1"):
        list(clusters.members([other], [one], tmp_path))
    assert [found.id for found in clusters.members([german], [one], tmp_path)] == ["c"]
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "table.parquet")
    with pytest.raises(UserError, match=r"table.parquet is no file of MinHash signatures"):
        list(clusters.members([tmp_path / "table.parquet"], [], tmp_path))
    (tmp_path / "cut.parquet").write_bytes(one.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cut.parquet cannot be read"):
        list(clusters.members([tmp_path / "cut.parquet"], [], tmp_path))
    with pytest.raises(UserError, match=r"missing.parquet cannot be read"):
        list(clusters.members([tmp_path / "missing.parquet"], [], tmp_path))


def test_no_file_and_no_document_have_no_duplicates(tmp_path):
    empty, one = write(tmp_path / "empty.parquet", []), write(tmp_path / "one.parquet", [("a", 0, 1, (1, 2, 3, 4))])
    assert [
        list(clusters.members(*both, tmp_path)) for both in (([], []), ([empty], []), ([empty], [one]), ([one], []))
    ] == [[]] * 4


def test_what_a_killed_or_left_run_wrote_is_removed(tmp_path):
    files = [write(tmp_path / "one.parquet", [(name, 0, 1, (1, 2, 3, 4)) for name in "abc"])]
    (tmp_path / ".clusters").mkdir()
    (tmp_path / ".clusters" / "bucket-0").mkdir()
    (tmp_path / ".clusters" / "bucket-0" / "7.parquet").write_bytes(b"cut")
    rows = clusters.members(files, [], tmp_path)
    assert next(rows).id == "a"
    rows.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet"]


def test_an_id_that_is_there_twice_does_not_drop_itself(tmp_path):
    files = [write(tmp_path / "one.parquet", [(name, ord(name), 1, (1, 2, 3, 4)) for name in "abab"])]
    assert [(one.id, one.dropped) for one in clusters.members(files, [], tmp_path)] == [("a", False), ("b", True)]
    known = [write(tmp_path / "known.parquet", [("a", ord("a"), 1, (1, 2, 3, 4))])]
    assert all(one.dropped and one.kept == "a" for one in clusters.members(files, known, tmp_path))


def made(tmp_path, name, texts, step):
    """The file of signatures of texts by id."""
    path = tmp_path / f"{name}.parquet"
    with signatures.SignatureWriter(path, step) as writer:
        writer.take(step(to_batch([Document(key, text, "") for key, text in texts.items()])).batch)
    return path


@pytest.mark.parametrize("method", ["fineweb", "fast"])
def test_near_copies_are_found_and_nothing_else(tmp_path, method):
    """Pages of Python's documentation, and of every third one a copy with three of its words replaced."""
    pytest.importorskip("spacy")
    rng, step = random.Random(0), MinHash(method=method)
    pages, copies, seen = {}, {}, set()
    for name, text in pydoc_data.topics.topics.items():
        runs = set(zip(*(text.split()[k:] for k in range(5))))
        if len(runs) > 300 and len(runs & seen) < 0.1 * len(runs):  # some pages are parts of others
            pages[name] = text
            seen |= runs
    for name in list(pages)[::3]:
        words = pages[name].split()
        for place in rng.sample(range(len(words)), 3):
            words[place] = "replaced"
        copies[f"copy of {name}"] = " ".join(words)
    both = made(tmp_path, "pages", pages, step), made(tmp_path, "copies", copies, step)
    pairs = {frozenset((one.id, one.kept)) for one in clusters.duplicates(both, [], tmp_path)}
    assert pairs == {frozenset((name, name.removeprefix("copy of "))) for name in copies}
    found = list(clusters.duplicates(both[1:], both[:1], tmp_path))
    assert {one.id: one.kept for one in found} == {name: name.removeprefix("copy of ") for name in copies}


@pytest.mark.parametrize("method", ["fineweb", "fast"])
@pytest.mark.parametrize("count", [100, 1000])
def test_gold_pairs_are_found_and_no_other(tmp_path, method, count):
    """Articles of github.com/chrisjmccormick/MinHash."""
    folder = real("neardup")
    with gzip.open(folder / f"articles_{count}.train.gz", "rt") as file:
        texts = dict(line.split(" ", 1) for line in file)
    gold = {frozenset(line.split()) for line in (folder / f"articles_{count}.truth").read_text().splitlines()}
    path = made(tmp_path, "articles", texts, MinHash(method=method))
    found = list(clusters.duplicates([path], [], tmp_path))
    assert {frozenset((one.id, one.kept)) for one in found} == gold
    assert all(one.size == 2 for one in found)
