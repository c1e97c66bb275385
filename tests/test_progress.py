import io

import pytest

from navprune.progress import ProgressLine, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3725, "1:02:05")])
def test_durations_read_as_clocks(seconds, text):
    assert clock(seconds) == text


def test_the_last_line_is_always_shown_and_earlier_ones_only_now_and_then():
    stream = io.StringIO()
    line = ProgressLine("drawing", 3, "homes", stream=stream)
    for done in (1, 2, 3):
        line.show(done, "on the way")
    (shown,) = stream.getvalue().splitlines()
    assert shown.startswith("drawing  3 of 3 homes")
    assert shown.endswith("0:00 left  on the way")


def test_a_terminal_keeps_one_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    line = ProgressLine("drawing", 2, "homes", stream=stream)
    line.interval = 0.0
    line.show(1)
    line.show(2)
    assert stream.getvalue().count("\r\x1b[2K") == 2
    assert stream.getvalue().count("\n") == 1
