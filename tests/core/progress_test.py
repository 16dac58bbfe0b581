import io

from core.progress import Progress, count, duration


def test_durations_and_counts():
    assert [duration(5), duration(65), duration(7385)] == ["0:05", "1:05", "2:03:05"]
    assert [count(7), count(12_345), count(4_720_000), count(2e9)] == ["7", "12.3k", "4.72M", "2B"]


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
