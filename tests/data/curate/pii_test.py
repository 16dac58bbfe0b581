import pytest

from data.curate.pii import LONGEST, PersonalData


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


def test_a_hostile_piece_is_left_and_takes_no_time():
    piece = "a." * LONGEST + "@"
    assert PersonalData().cleaned(piece) == piece
