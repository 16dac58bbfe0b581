import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate.pii import PersonalData


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Write to jane.doe@mail.example-site.org, please.", "Write to email@example.com, please."),
        ("a@b.co and c+d@e.fr, f@g.de", "email@example.com and firstname.lastname@example.org, email@example.com"),
        ("no @ address, user@localhost", "no @ address, user@localhost"),
        ("8.8.8.8 asks 192.168.0.1 and 1.1.1.1", "22.214.171.124 asks 192.168.0.1 and 126.96.36.199"),
        ("version 1.2.3", "version 1.2.3"),
        ("", ""),
    ],
)
def test_addresses_are_replaced_in_turn(text, cleaned):
    assert PersonalData().cleaned(text) == cleaned


def test_what_is_left_can_be_chosen():
    text = "a@b.co 8.8.8.8 10.0.0.1"
    assert PersonalData(emails=False).cleaned(text) == "a@b.co 22.214.171.124 10.0.0.1"
    assert PersonalData(ips=False).cleaned(text) == "email@example.com 8.8.8.8 10.0.0.1"
    assert PersonalData(public_ips_only=False).cleaned(text).endswith("22.214.171.124 126.96.36.199")


@pytest.mark.parametrize("piece", ["a", "a.", "a!", "b-", "a@", "a@b-", ".", "@", "字"])
def test_hostile_pages_take_no_time(piece):
    page = "a@b.co " + piece * (300_000 // len(piece)) + "@" + piece * (300_000 // len(piece))
    assert PersonalData().cleaned(page).startswith("email@example.com ")


def test_a_long_piece_hides_no_address():
    assert PersonalData().cleaned("。" * 10_001 + "joe@site.org") == "。" * 10_001 + "email@example.com"


EMAIL = re.compile(  # datatrove's pattern, pipeline/formatters/pii.py, but for addresses in brackets
    r"\b[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
)


@settings(max_examples=500)
@given(text=st.text("ab.@- !'[é", max_size=30))
def test_addresses_are_those_of_the_pattern(text):
    new = itertools.cycle(["email@example.com", "firstname.lastname@example.org"])
    assert PersonalData().cleaned(text) == EMAIL.sub(lambda _: next(new), text)
