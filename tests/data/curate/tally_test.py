"""Counts and samples: the same in whatever order documents come and however they are split, in bounded memory."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate import counts, diversity, samples
from data.curate.counts import Copies, Names, entropy, host, length_bin, score_bins
from data.curate.diversity import TextSample
from data.curate.partition import to_batch
from data.curate.samples import Firsts, Group, Samples, changed_row, digest
from data.curate.step import replace
from data.document import Document, id_hash

GROUP = Group("dropped", "step", "reason")


def sampled(numbers, group=GROUP):
    found = Samples()
    for number in numbers:
        found.offer(group, number, lambda number=number: {"id": str(number)})
    return found


@settings(deadline=None, derandomize=True)
@given(parts=st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=4), seed=st.integers(0, 99))
def test_samples_are_the_smallest_hashes_however_they_come(parts, seed):
    numbers = list(itertools.chain.from_iterable(parts))
    smallest = sorted(set(numbers))[: samples.EACH]
    random.Random(seed).shuffle(numbers)
    merged = Samples()
    for part in parts:
        merged.merge(sampled(part).plain())
    expected = [{**GROUP._asdict(), "samples": [(number, {"id": str(number)}) for number in smallest]}]
    assert merged.plain() == sampled(numbers).plain() == (expected if numbers else [])


def test_groups_are_bounded_and_the_same_ones_stay(monkeypatch):
    monkeypatch.setattr(samples, "GROUPS", 5)
    groups = [Group("dropped", "step", str(number)) for number in range(100)]
    seen = []
    for order in (groups, groups[::-1]):
        merged = Samples()
        for start in range(0, 100, 10):
            part = Samples()
            for group in order[start : start + 10]:
                part.offer(group, 1, lambda group=group: {"id": group.reason})
            merged.merge(part.plain())
        seen.append(merged.plain())
    assert seen[0] == seen[1]
    assert len(seen[0]) == 5


def test_a_rejected_document_costs_nothing():
    """Its text is not taken out of the batch."""
    found = sampled(range(samples.EACH))
    found.offer(GROUP, samples.EACH, lambda: pytest.fail("was made"))


def test_names_beyond_a_number_are_counted_together():
    names = Names(most=10)
    for number in range(100):
        names.add("common", 1, 10)
        names.add(f"rare{number}", 1, 1)
    assert len(names.sizes) <= 20
    assert names.ranked()[0] == ("common", [100, 1000])
    assert sum(size[0] for size in names.sizes.values()) + names.others[0] == 200
    other = Names(most=10)
    other.merge(names.plain())
    assert (other.sizes, other.others) == (names.sizes, names.others)


@settings(deadline=None, derandomize=True)
@given(size=st.integers(1, 1 << 60))
def test_bins_of_lengths_are_half_octaves(size):
    number = length_bin(size)
    assert 2 ** (number / 2) <= size * (1 + 1e-12)
    assert size < 2 ** ((number + 1) / 2) * (1 + 1e-12)


def test_bins_of_scores():
    values = [0, 0.01, 0.05, 0.051, 1.0, -0.2, 3.7, 1e9, float("nan"), None, "0.5"]
    assert list(score_bins(values)) == ["0", "0", "0", "1", "19", "-5", "73", str(counts.MOST_BINS - 1)]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://www.Example.org:8080/a", "example.org"),
        ("http://news.bbc.co.uk/", "news.bbc.co.uk"),
        ("file.jsonl:12", ""),
        ("ftp://x.org/", ""),
        ("https://[", ""),
        ("http://", ""),
        ("", ""),
    ],
)
def test_hosts(url, name):
    assert host(url) == name


def test_entropy():
    assert entropy([5] * 8) == pytest.approx(3)
    assert entropy([7, 0]) == entropy([]) == 0


def test_a_change_is_shown_from_shortly_before_it():
    text = "a" * 5000 + "joe@site.org" + "b" * 5000
    before = to_batch([Document("d", text, "")])
    after = replace(before, "text", [text.replace("joe@site.org", "email@example.com")])
    sample = changed_row(before, after, 0)
    assert sample["begin"] == 5000 - samples.CONTEXT
    assert sample["before"][samples.CONTEXT :].startswith("joe@site.orgb")
    assert sample["text"][samples.CONTEXT :].startswith("email@example.comb")
    assert len(sample["text"]) == samples.EXCERPT
    assert sample["characters"] == len(text) + 5


def test_the_first_of_a_text_is_remembered_for_an_even_share(monkeypatch):
    monkeypatch.setattr(samples, "FIRSTS", 50)
    firsts, numbers = Firsts(), [id_hash(str(number), "test") for number in range(5000)]
    for number in numbers:
        firsts.add(number, str(number))
        firsts.add(number, "later")
    assert len(firsts.of) <= 100
    assert firsts.of == {number: str(number) for number in numbers if number < firsts.bound}


@settings(deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 30), max_size=40), seed=st.integers(0, 99))
def test_the_sample_of_text_does_not_depend_on_the_order(sizes, seed):
    documents = [(7919 * number % 1009, "x" * size) for number, size in enumerate(sizes)]
    found = []
    for order in (documents, random.Random(seed).sample(documents, len(documents))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diversity, "SAMPLE", 100)
            patch.setattr(diversity, "MOST", 20)
            sample = TextSample()
            for number, text in order:
                sample.add(number, text)
            found.append(sample.texts())
    assert found[0] == found[1]
    smallest = [text[:20] for _, text in sorted(documents)]
    assert found[0] == smallest[: len(found[0])]
    assert sum(map(len, found[0])) >= min(100, sum(map(len, smallest)))
    assert sum(map(len, found[0][:-1])) < 100


def test_diversity_of_texts_that_are_known():
    same = diversity.diversity(["the cat sat on the mat again"] * 16)
    different = diversity.diversity(
        [" ".join(f"{letter}{number}" for number in range(7)) for letter in "abcdefghijklmnop"]
    )
    assert same["distinct"] == [round(6 / 112, 4), round(6 / 96, 4), round(5 / 80, 4)]
    assert different["distinct"] == [1, 1, 1]
    assert same["topics"] == {"documents": 16, "bits": 0}
    assert different["topics"]["bits"] == pytest.approx(math.log2(16), abs=0.02)
    assert same["compression"]["together"] > 5 * same["compression"]["alone"] > 0
    assert diversity.diversity([]) == {
        "documents": 0,
        "characters": 0,
        "words": 0,
        "distinct": [0, 0, 0],
        "compression": {"together": 0, "alone": 0},
        "topics": {"documents": 0, "bits": 0},
    }


def test_two_topics_are_one_bit():
    texts = [f"apples pears plums cherries {word}" for word in ("", "ripe")] * 8
    texts += [f"engines wheels brakes {word}" for word in ("", "oiled")] * 8
    assert 1 <= diversity.diversity(texts)["topics"]["bits"] < 1.7


def test_words_beyond_the_bound_are_not_counted(monkeypatch):
    monkeypatch.setattr(diversity, "WORDS", 10)
    assert diversity.diversity(["a b c d"] * 5)["words"] == 10


def test_sizes_of_many_clusters_are_estimated_from_an_even_share(monkeypatch):
    monkeypatch.setattr("data.curate.counts.CLUSTERS", 500)
    copies = Copies()
    for name in [*range(4000), *range(2000)]:  # half of the clusters have three documents, half two
        copies.add(digest(str(name)))
    assert copies.one_in > 1
    assert len(copies.counts) <= 1000
    assert {size: round(number, -3) for size, number in copies.sizes().items()} == {2: 2000, 3: 2000}
