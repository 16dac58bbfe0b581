"""Text files, long ones in pieces."""

import pytest

from data.sources import folder, text


def test_a_long_text_is_cut_at_blank_lines_and_loses_nothing():
    paragraphs = [f"{number} " + "x" * 900 + "\n\n" for number in range(200)]
    whole = "".join(paragraphs) + "\n\nend"
    pieces = list(text.split_long(whole))
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    assert all(len(piece) <= text.LONG_TEXT for piece in pieces)
    assert all(piece[0].isdigit() for piece in pieces[1:])


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n\n\n", "\r\n\r\n\r\n", "\n", "\r\n"])
def test_a_long_text_is_cut_after_paragraphs_or_else_lines(end):
    whole = "".join(f"{number} xxxx{end}" for number in range(100))
    pieces = list(text.split_long(whole, 50))
    assert "".join(pieces) == whole
    assert all(0 < len(piece) <= 50 and piece[0].isdigit() and piece.endswith(end) for piece in pieces)


def test_a_long_text_without_lines_is_cut_at_the_limit():
    assert list(text.split_long("x" * 27 + "\n\ny\n\n", 10)) == ["x" * 10, "x" * 10, "x" * 7 + "\n\n", "y\n\n"]
    assert list(text.split_long("\n" * 25, 10)) == ["\n" * 10, "\n" * 10, "\n" * 5]


def test_pieces_of_a_long_text_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(text.split_long, "__defaults__", (10,))
    (tmp_path / "a.txt").write_bytes(b"first\r\n\r\nsecond\r\n")
    (tmp_path / "b.txt").write_text("short")
    (tmp_path / "c.txt").write_text("")
    found = [(item.id, item.text) for item in folder.read(tmp_path, ["a.txt", "b.txt", "c.txt"])]
    assert found == [
        ("a.txt#0", "first\r\n\r\n"),
        ("a.txt#1", "second\r\n"),
        ("b.txt", "short"),
        ("c.txt", ""),  # the recipe counts it as too short
    ]
