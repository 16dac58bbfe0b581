import pytest

from data.curate.partition import through, to_batch
from data.curate.quality import C4Quality, FineWebQuality, GopherQuality
from data.document import Document

pytest.importorskip("spacy")
PROSE = "The town lies on a hill, and people have lived there for a long time with their animals. "
LINES = "\n".join(PROSE.strip() + f" It is so for the {number} time." for number in range(6))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE * 4, None),
        (PROSE, "gopher_short_doc"),
        ("", "gopher_short_doc"),
        ("a b " * 60, "gopher_below_avg_threshold"),
        ("extraordinarily incomprehensible " * 60, "gopher_above_avg_threshold"),
        (PROSE * 4 + "# " * 20, "gopher_too_many_hashes"),
        (PROSE * 4 + "... " * 20, "gopher_too_many_ellipsis"),
        ("- " + (PROSE * 4).replace(". ", ".\n- "), "gopher_too_many_bullets"),
        ((PROSE * 4).replace(". ", "...\n"), "gopher_too_many_end_ellipsis"),
        (PROSE * 4 + "12345 " * 40, "gopher_below_alpha_threshold"),
        ("La ville est sur une colline et il y a des animaux dans les rues depuis longtemps. " * 4,
         "gopher_enough_stop_words"),
    ],
)  # fmt: skip
def test_gophers_rules_give_their_reasons(text, reason):
    assert GopherQuality().reason(text) == reason


def test_words_may_be_too_many():
    assert GopherQuality(max_doc_words=50).reason(PROSE * 4) == "gopher_long_doc"


@pytest.mark.parametrize(
    ("text", "kept", "reason"),
    [
        (LINES, LINES, None),
        (LINES + "\nTwo words.\n  Use of cookies on this site.  ", LINES, None),
        (LINES + "\nPlease turn on JavaScript to see this.", LINES, None),
        (LINES + "\nA word of some length: " + "x" * 1001, LINES, None),
        (LINES.replace("town", "town [12][edit][citation needed]"), LINES.replace("town", "town "), None),
        (LINES + "\nThen we write lorem ipsum.", None, "lorem_ipsum"),
        (LINES + "\nif (a == b) { c }", None, "curly_bracket"),
        ("Only one sentence is here.", None, "too_few_sentences"),
        ("", None, "too_few_sentences"),
    ],
)
def test_c4_leaves_out_lines_and_drops_what_is_then_too_short(text, kept, reason):
    batch, dropped = through({"c4": C4Quality()}, to_batch([Document("a", text, "")]))
    assert [one.reason for one in dropped] == ([reason] if reason else [])
    assert batch.column("text").to_pylist() == ([] if reason else [kept])


def test_c4_may_ask_for_a_mark_at_the_end_of_a_line():
    text = LINES + "\nA line without its mark\nAnother that goes on ..."
    assert C4Quality(filter_no_terminal_punct=True).cleaned(text) == (LINES, None)
    assert C4Quality().cleaned(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LINES, None),
        ("", "empty"),
        (" \n ", "empty"),
        ("\n".join(PROSE[:-3] for _ in range(3)), "line_punct_ratio"),
        ("Short line.\n" * 3, "short_line_ratio"),
        (PROSE.strip() + "\n" + PROSE.strip(), "char_dup_ratio"),
        ("\n\n\n\n\n\n\n\n".join(["Every line here has only some words.", "And they all lie apart by blank lines."]),
         "list_ratio"),
    ],
)  # fmt: skip
def test_finewebs_rules_give_their_reasons(text, reason):
    assert FineWebQuality().reason(text) == reason


def test_other_marks_may_end_a_line():
    thai = "ประโยคนี้ยาวพอที่จะเป็นบรรทัดหนึ่งในเอกสารของเรา"
    assert FineWebQuality(language="xx").reason(thai) == "line_punct_ratio"
    assert FineWebQuality(language="xx", line_punct_exclude_zero=True).reason(thai) is None
