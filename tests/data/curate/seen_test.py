"""A set of texts in a file says what a set in memory says."""

from hypothesis import given
from hypothesis import strategies as st

from data.curate.seen import Seen


@given(st.lists(st.text(max_size=3), max_size=200))
def test_a_text_is_new_once(tmp_path_factory, texts):
    known = set()
    with Seen(tmp_path_factory.mktemp("seen") / "seen", 1) as seen:  # far more than it was told to expect
        for text in texts:
            assert seen.add(text) == (text not in known)
            known.add(text)


def test_more_texts_than_expected_are_still_told_apart(tmp_path):
    with Seen(tmp_path / "seen", 1) as seen:
        assert all(seen.add(str(number)) for number in range(100))
        assert not any(seen.add(str(number)) for number in range(100))
    assert not list(tmp_path.iterdir())
