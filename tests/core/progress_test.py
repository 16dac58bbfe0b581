import io

import pytest

from core.progress import Progress, count, duration, quantity


def test_durations_and_counts():
    assert [duration(5), duration(65), duration(7385)] == ["0:05", "1:05", "2:03:05"]
    assert [count(7), count(12_345), count(4_720_000), count(2e9)] == ["7", "12.3k", "4.72M", "2B"]


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [(0, "B", "0"), (999, "B", "999 B"), (10_400_000, "B", "10.4 MB"), (1.27e14, "FLOP", "127 TFLOP")],
)
def test_quantities(number, unit, text):
    assert quantity(number, unit) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_rewritten_line_with_time_left():
    stream = Terminal()
    bar = Progress("train", 10, start=2, stream=stream)
    bar.began -= 30  # seconds for the 3 units of work below
    bar.update(5, "loss 2.000")
    assert stream.getvalue().startswith("\rtrain ██████████░")
    assert "5/10 · loss 2.000 · 0:50 left" in stream.getvalue()
    assert "\n" not in stream.getvalue()
    bar.finish("10 steps")
    assert stream.getvalue().endswith("in 0:30" + " " * (len(stream.getvalue().split("\r")[1]) - 23) + "\n")


def test_a_log_file_gets_whole_lines_now_and_then():
    stream = io.StringIO()
    bar = Progress("train", 10, stream=stream)
    bar.update(1)
    assert stream.getvalue() == ""
    bar.shown -= 11
    bar.update(2)
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()


def test_the_last_note_stays_while_items_are_counted():
    bar = Progress("curate", 3, stream=Terminal())
    bar.began -= 10
    shown = []
    for item in bar.over("abc"):
        bar.shown = 0.0  # more than a tenth of a second has passed
        bar.update(bar.done, f"{item} is done, {bar.rate(200):.0f}/s")
        bar.shown = 0.0
        shown.append(bar.stream.getvalue().split("\r")[-1])
    assert "0/3 · a is done, 20/s · starting" in shown[0]
    assert "2/3 · c is done, 20/s · 0:05 left" in shown[2]
    assert "3/3 · c is done, 20/s · 0:00 left" in bar.stream.getvalue()
    with pytest.raises(KeyboardInterrupt):
        list(bar.over(_interrupted()))
    assert bar.stream.getvalue().endswith("\n")  # what is said next has a line of its own


def _interrupted():
    yield 1
    raise KeyboardInterrupt
