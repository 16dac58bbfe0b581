import errno
import signal

import pytest

from core.errors import Stopped, UserError, explain


def test_disk_errors_name_the_file():
    error = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert explain(error) == ("/data/x: no space is left on the disk", 2)


def test_what_the_system_said_is_found_inside_a_library_error():
    text = 'RESOURCE_EXHAUSTED: Error writing "/w/d/ab": [OS error 28: ENOSPC No space left on device]'
    assert explain(ValueError(text)) == ("/w/d/ab: no space is left on the disk", 2)
    outer = RuntimeError("save failed")
    outer.__cause__ = OSError(errno.EROFS, "Read-only file system", "/w")
    assert explain(outer) == ("/w: the file system is read-only", 2)


def test_stops_have_the_exit_codes_of_shells():
    assert explain(Stopped(signal.SIGTERM)).exit_code == 143
    assert explain(KeyboardInterrupt()).exit_code == 130


def test_a_bug_keeps_its_traceback():
    assert explain(ValueError("shapes do not match")) is None
    assert explain(AssertionError()) is None


def test_a_user_error_is_one_line():
    assert explain(UserError("a\nb")) == ("a b", 2)


def test_names_from_files_of_strangers_neither_flood_nor_steer_the_terminal():
    line = explain(UserError("tensor \x1b[2J\ud800" + "x" * 10_000 + " is damaged")).line
    assert line.startswith(r"tensor \x1b[2J\ud800xxx")
    assert line.endswith("x is damaged")
    assert len(line) < 2100


def test_a_bug_while_handling_a_disk_error_is_not_blamed_on_the_disk():
    def buggy():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            return {}["bug"]

    with pytest.raises(KeyError) as caught:
        buggy()
    assert explain(caught.value) is None


def test_stopped_passes_through_except_exception():
    assert not issubclass(Stopped, Exception)
