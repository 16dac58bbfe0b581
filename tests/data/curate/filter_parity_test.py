"""What datatrove's filters decide of texts on both sides of every threshold (recorded), decided here."""

import collections
import hashlib
import json
from importlib import util
from pathlib import Path

import pytest

from data.curate.quality import C4Quality, FineWebQuality, GopherQuality
from data.curate.repetition import GopherRepetition

pytest.importorskip("spacy")

_spec = util.spec_from_file_location("filter_cases", Path(__file__).with_name("filter_cases.py"))
cases = util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

TEXTS = cases.texts()
GOLDEN = json.loads(Path(__file__).with_name("filter_golden.json").read_text(encoding="utf-8"))
RULES = {"repetition": GopherRepetition(), "quality": GopherQuality(), "fineweb": FineWebQuality()}


def decide(text):
    found = {rule: step.reason(text) for rule, step in RULES.items()}
    left, found["c4"] = C4Quality().cleaned(text)
    if found["c4"] is None:
        found["left"] = hashlib.blake2b(left.encode(), digest_size=8).hexdigest()
    return found


def test_decisions_are_those_of_datatrove():
    assert TEXTS.keys() == GOLDEN.keys()
    assert {name: found for name, text in TEXTS.items() if (found := decide(text)) != GOLDEN[name]} == {}


def test_every_reason_is_there_twice():
    counts = collections.Counter((rule, reason) for found in GOLDEN.values() for rule, reason in found.items())
    few = [one for one, count in counts.items() if count == 1 and one[0] != "left"]
    assert few == [("repetition", "empty")]  # of which there is one text
    reasons = {reason for (rule, reason) in counts if rule != "left" and reason}
    assert reasons == {
        *("empty", "dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac"),
        *(f"top_{n}_gram" for n in (2, 3, 4)),
        *(f"duplicated_{n}_n_grams" for n in range(5, 11)),
        *("gopher_short_doc", "gopher_long_doc", "gopher_below_avg_threshold", "gopher_above_avg_threshold"),
        *("gopher_too_many_hashes", "gopher_too_many_ellipsis", "gopher_too_many_bullets"),
        *("gopher_too_many_end_ellipsis", "gopher_below_alpha_threshold", "gopher_enough_stop_words"),
        *("too_few_sentences", "lorem_ipsum", "curly_bracket"),
        *("line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio"),
    }
