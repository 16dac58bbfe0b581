"""Text from tokens: nothing lost, nothing said too early, and an end where it belongs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completer_lab import CONTEXT, ByteTokens, completer
from core.errors import UserError
from data.tokenizer import TextStream
from evals.complete import BeforeStop
from model.sample import Sampling

GREEDY = Sampling(temperature=0)


def run(made, prompts, **settings):
    """The text, finish reason and number of tokens of each row, and the pieces of the first."""
    rows, first = {}, []
    for pieces in made.complete(prompts, **{"max_tokens": 100, "sampling": GREEDY, **settings}):
        for row, text, finish, tokens in pieces:
            assert rows.get(row, ("", None, 0))[1] is None, "nothing follows the last piece"
            rows[row] = (rows.get(row, ("",))[0] + text, finish, tokens)
            first += [text] if row == 0 else []
    return [rows[row] for row in range(len(prompts))], first


def by_the_letter(text, stop):
    """What stands before the stop string that ends first, looked for one character at a time."""
    for end in range(1, len(text) + 1):
        begins = [end - len(word) for word in stop if text[:end].endswith(word)]
        if begins:
            return text[: min(begins)], True
    return text, False


TEXTS = st.text("ab", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


@given(st.lists(TEXTS, max_size=6), STOPS)
def test_text_ends_before_the_first_stop_string_in_whatever_pieces_it_comes(parts, stop):
    before, said = BeforeStop(stop), ""
    whole, found = by_the_letter("".join(parts), stop)
    for count, part in enumerate(parts):
        said += before.push(part)
        reached, _ = by_the_letter("".join(parts[: count + 1]), stop)
        assert reached.startswith(said)
        if not before.found:  # what is held back is the beginning of a stop string
            assert not before.held or any(word.startswith(before.held) for word in stop)
    assert (said + before.flush(), before.found) == (whole, found)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        BeforeStop(["x", ""])


def test_characters_come_whole_and_the_reasons_are_told():
    (row,), pieces = run(completer("äß€😀</s>"), [[1]])
    assert row == ("äß€😀", "stop", 12)
    assert [piece for piece in pieces if piece] == ["ä", "ß", "€", "😀"]
    (row,), _ = run(completer("äß"), [[1]], max_tokens=3)
    assert row == ("ä\ufffd", "length", 3)


def test_rows_end_by_themselves_each_for_its_reason():
    rows, _ = run(completer("one</s>", "two, three", "four"), [[1], [2] * 30, [3]], stop=[", "], max_tokens=8)
    assert rows == [("one", "stop", 4), ("two", "stop", 5), ("fourfour", "length", 8)]


def test_what_was_held_back_is_said_at_the_end():
    assert run(completer("ab</s>"), [[1]], stop=["abc"])[0] == [("ab", "stop", 3)]
    assert run(completer("ab"), [[1]], stop=["bc", "aba!"], max_tokens=3)[0] == [("aba", "length", 3)]


def test_generation_ends_with_the_last_row():
    made = completer("hello. and on and on")
    run(made, [[1]], stop=["."])
    assert made.decoder.steps <= 7  # the six tokens, and one that was under way


def test_a_full_cache_is_an_end_for_want_of_room():
    full = [7] * CONTEXT
    assert run(completer("x"), [full, full[2:]], max_tokens=None)[0] == [("x", "length", 1), ("xxx", "length", 3)]
    with pytest.raises(UserError, match=r"longer than the cache.*eval\.context"):
        run(completer("x"), [[7, *full]])


def test_a_chat_ends_with_the_turn_and_shows_the_names_of_special_tokens():
    made = completer("<|im_start|>hm, yes<|im_end|>no")
    ids = made.chat_prompt([{"role": "user", "content": "so?"}], enable_thinking=False)
    text = ByteTokens().decode(ids, special=True)
    assert text.endswith("<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n")
    assert ids.count(258) == 1
    assert run(made, [ids], chat=True)[0] == [("<|im_start|>hm, yes", "stop", 9)]
    assert run(made, [ids], max_tokens=10)[0] == [("hm, yesn", "length", 10)]  # as text, turns mean nothing


def test_an_end_of_turn_that_is_no_token_is_a_stop_string():
    made = completer("yes<|im_end|>no")
    made.tokenizer.special_tokens = {"</s>": 256}
    assert run(made, [[1]], chat=True)[0] == [("yes", "stop", 4)]


def test_a_space_at_the_beginning_is_kept_after_a_prompt():
    """Families that put a space before each text take it off again: at the beginning of the text alone."""
    made = completer(" b</s>")
    made.tokenizer.stream = lambda _: TextStream(made.tokenizer.token_bytes, 1)
    assert run(made, [list(b" a")])[0][0][0] == " b"
    assert run(made, [[]])[0][0][0] == "b"
