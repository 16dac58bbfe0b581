"""Stored targets: what is kept of a distribution, and that it is found again at its document and place."""

import collections
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.files import Stage
from data import targets as module
from data.config import BatchConfig, StageConfig
from data.pipeline import Batches
from data.shards import TokenDocument, TokenShards, write_shard
from data.targets import Distributions, Form, Targets, decode, encode, open_targets, write_targets
from lab import make_batches


def as_dicts(found):
    """Probability of each id, place by place."""
    rows = []
    for ids, probs in zip(*found):
        row = collections.Counter()
        for token, probability in zip(ids.tolist(), probs.tolist()):
            row[token] += probability
        rows.append({token: probability for token, probability in row.items() if probability})
    return rows


def drawn(random, form, places):
    """Ids as they come, of some places nearly all alike."""
    wide = random.integers(0, form.vocab_size, (places, form.tokens))
    narrow = np.minimum(random.geometric(0.3, (places, form.tokens)), form.vocab_size) - 1
    return Distributions(np.where(random.random((places, 1)) < 0.5, wide, narrow).astype(np.int32))


@given(
    st.integers(1, 256),
    st.sampled_from([1, 7, 300, 1 << 16, 128_256, 1 << 20]),
    st.integers(1, 20),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_of_draws_the_counts_come_back(tokens, vocab_size, places, seed):
    form = Form("sample", tokens, vocab_size)
    given_ = drawn(np.random.default_rng(seed), form, places)
    found = decode(form, encode(form, given_), places)
    assert found.ids_Pk.shape == found.probs_Pk.shape == (places, tokens)
    for row, ids in zip(as_dicts(found), given_.ids_Pk.tolist()):
        expected = collections.Counter(ids)
        assert row == {token: pytest.approx(count / tokens, rel=1e-6) for token, count in expected.items()}
    used = found.probs_Pk > 0
    assert [len(set(ids[own])) for ids, own in zip(found.ids_Pk, used)] == used.sum(1).tolist()  # each id once


def test_fifty_draws_take_at_most_152_bytes():
    """Also where all differ, and the ids need three bytes."""
    form = Form("sample", 50, 128_256)
    for repeated in range(26):
        ids = np.concatenate([np.repeat(np.arange(repeated), 2), np.arange(100, 150 - 2 * repeated)])[None]
        assert len(encode(form, Distributions(ids))) == 152 - 2 * repeated


def test_of_the_largest_ids_and_probabilities_come_back():
    random, form = np.random.default_rng(0), Form("top_k", 8, 128_256)
    ids = random.integers(0, form.vocab_size, (30, 8))
    probs = random.dirichlet(np.ones(20), 30)[:, :8].astype(np.float32)
    record = encode(form, Distributions(ids, probs))
    assert len(record) == 30 * 8 * 5
    found = decode(form, record, 30)
    np.testing.assert_array_equal(found.ids_Pk, ids)
    np.testing.assert_allclose(found.probs_Pk, probs, rtol=2**-11, atol=3e-8)


FORM = Form("sample", 5, 90)
LENGTHS = [[3, 1, 20, 9], [40, 2, 2, 17, 1, 8]]  # of the documents of two shards
EVERY = [length for shard in LENGTHS for length in shard]


def own_draws(document, place):
    """Of a document by its number."""
    return np.random.default_rng([document, place]).integers(0, FORM.vocab_size, FORM.tokens)


def given_of(document):
    """All draws of a document."""
    places = range(EVERY[document] - 1)
    return Distributions(np.array([own_draws(document, place) for place in places], int).reshape(-1, FORM.tokens))


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Token shards and their targets, in records of 8 places; token t of document d is 100 d + t."""
    monkeypatch.setattr(module, "PLACES", 8)
    make(tmp_path)
    return tmp_path


def make(workdir):
    entries, written, number = [], [], 0
    tokens, targets = workdir / "tokens", workdir / "targets"
    for shard, lengths in enumerate(LENGTHS):
        numbers = range(number, number + len(lengths))
        documents = [TokenDocument(str(d), "s", [100 * d + t for t in range(n)], n) for d, n in zip(numbers, lengths)]
        path = tokens / f"train-{shard}.array_record"
        entries.append(write_shard(path, documents, np.dtype("<u2")))
        shards = TokenShards(tokens, entries, "<u2")
        taught = [(int(shards.crc32[d]), given_of(d)) for d in numbers]
        written.append(write_targets(targets / path.name, FORM, taught))
        number += len(lengths)
    Stage(tokens, {"tokenizer": "t"}).finish(
        [tokens / entry["name"] for entry in entries], {"train": {"shards": entries}, "dtype": "<u2"}
    )
    spec = {"teach": {"method": "sample", "tokens": 5}, "vocab_size": 90, **module.tokens_spec(workdir)}
    Stage(targets, spec).finish([targets / entry["name"] for entry in written], {"shards": written})
    return entries


def shards_of(workdir):
    entries = module.read_stage(workdir / "tokens", "tokenize")["summary"]["train"]["shards"]
    return TokenShards(workdir, [{**entry, "name": f"tokens/{entry['name']}"} for entry in entries], "<u2")


def test_every_stretch_of_every_document_has_its_own(workdir):
    targets = open_targets(workdir, shards_of(workdir))
    assert targets.form == FORM
    for document, length in enumerate(EVERY):
        for begin in range(0, length, 3):
            for size in range(1, length - begin + 1, 2):
                predicted = min(size, length - 1 - begin)
                piece = module.Piece(document, begin, size, 3, predicted)
                row = targets.row([piece], 50)
                found = as_dicts(row)
                assert not any(found[:3] + found[3 + predicted :])
                for place in range(predicted):
                    counts = collections.Counter(own_draws(document, begin + place).tolist())
                    expected = {token: pytest.approx(count / 5) for token, count in counts.items()}
                    assert found[3 + place] == expected, (document, begin, place)


def respecify(workdir, change):
    """The same targets, made from something else."""
    manifest = module.read_stage(workdir / "targets", "teach")
    Stage(workdir / "targets", manifest["spec"] | change, stale="replace").finish([], manifest["summary"])


def refusal(workdir):
    with pytest.raises(UserError) as caught:
        open_targets(workdir, shards_of(workdir)).row([module.Piece(2, 0, 19, 0, 19)], 20)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_targets_that_are_missing_or_damaged_are_told(workdir):
    path = workdir / "targets" / "train-0.array_record"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{path} is missing or not {len(whole):,} bytes; run `launch.py teach`" in refusal(workdir)
    path.unlink()
    assert f"{path} is missing or not {len(whole):,} bytes; run `launch.py teach`" in refusal(workdir)
    damaged = bytearray(whole)
    middle = encode(FORM, Distributions(np.array([own_draws(2, place) for place in range(8)])))
    damaged[whole.index(middle) + 30] ^= 1
    path.write_bytes(damaged)
    assert f"{path}: the targets of document 2 are damaged" in refusal(workdir)
    shutil.rmtree(workdir / "targets")
    assert "targets is not finished; run `launch.py teach`" in refusal(workdir)


def test_targets_of_another_document_are_damaged(workdir):
    """Those of documents 5 and 6, of one length, exchanged: each is whole, and at the wrong place."""
    path, shards = workdir / "targets" / "train-1.array_record", shards_of(workdir)
    order = [4, 6, 5, 7, 8, 9]
    write_targets(path, FORM, [(int(shards.crc32[d]), given_of(d)) for d in order])
    with pytest.raises(UserError, match="the targets of document 5 are damaged"):
        open_targets(workdir, shards).row([module.Piece(5, 0, 1, 0, 1)], 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ["other", "hash"]}, r"was made for other token shards \(tokens\[0\] was"),
        ({"tokens": []}, r"was made for other token shards \(tokens had 0 entries, has 2"),
        ({"tokenizer": "u"}, r'was made for other token shards \(tokenizer was "u", is "t"\)'),
    ],
)
def test_targets_of_other_tokens_are_refused(workdir, change, message):
    respecify(workdir, change)
    with pytest.raises(UserError, match=message):
        open_targets(workdir, shards_of(workdir))


def test_shards_in_another_order_are_refused(workdir):
    respecify(workdir, {"tokens": module.tokens_spec(workdir)["tokens"][::-1]})
    with pytest.raises(UserError, match="other token shards"):
        open_targets(workdir, shards_of(workdir))


def test_generations_taught_in_another_way_are_refused(workdir):
    make(workdir / "added-1")
    respecify(workdir / "added-1", {"teach": {"method": "sample", "tokens": 6}})
    with pytest.raises(UserError, match=r"made in another way than .* \(teach.tokens was 5, is 6\)"):
        open_targets(workdir, shards_of(workdir), added=1)


@pytest.mark.parametrize("packing", ["split", "best_fit"])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=4, max_size=14).filter(lambda found: max(found) > 3),
    row_lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_every_place_of_every_batch_has_the_distribution_of_its_document_and_position(
    packing, lengths, row_lengths, seed, tmp_path_factory
):
    """Rows of any length, one after the other, documents cut anywhere; token t of document d is 50 d + t."""
    folder = tmp_path_factory.mktemp("batches")
    before, module.PLACES = module.PLACES, 8
    try:
        documents = [TokenDocument(str(d), "s", [50 * d + t for t in range(n)], n) for d, n in enumerate(lengths)]
        entry = write_shard(folder / "tokens" / "t.array_record", documents, np.dtype("<u2"))
        shards = TokenShards(folder / "tokens", [entry], "<u2")
        draws = [[own_draws(d, place) for place in range(n - 1)] for d, n in enumerate(lengths)]
        given_ = [Distributions(np.array(rows, int).reshape(-1, FORM.tokens)) for rows in draws]
        written = write_targets(folder / "targets" / "t.array_record", FORM, zip(shards.crc32.tolist(), given_))
        targets = Targets(shards, FORM, [{"summary": {"shards": [written]}}])
        stages = tuple(StageConfig(tokens=6 * length, row_length=length) for length in row_lengths)
        config = BatchConfig(rows=2, row_length=1, packing=packing, stages=stages)
        if sum(lengths) <= max(row_lengths):
            return
        plan = make_batches(shards, config, seed, steps=0).plan
        batches, plain, seen = Batches(plan, targets=targets), Batches(plan), 0
        for k in range(plan.steps):
            batch = batches.batch(k)
            for field, other in zip(batch, plain.batch(k)):
                np.testing.assert_array_equal(field, other)
            found = as_dicts([field.reshape(-1, FORM.tokens) for field in batch[5:]])
            for token, weight, own in zip(batch.tokens_BT.ravel(), batch.weights_BT.ravel(), found):
                document, place = divmod(int(token), 50)
                expected = collections.Counter(draws[document][place].tolist()) if weight else {}
                assert own == {token: pytest.approx(count / 5) for token, count in expected.items()}
                seen += weight
        assert seen
    finally:
        module.PLACES = before
