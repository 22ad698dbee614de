"""Displays: one line at the start, progress now and then, nothing when quiet."""

from __future__ import annotations

import io
import math
import sys

import pytest

from relax_rl.displays import PlainDisplay, RichDisplay, SilentDisplay, make_display


def run(display):
    display.begin("CartPole-v1 · relax", step=0, total=2000)
    display.update(500, math.nan)
    display.update(1000, 21.25)
    display.say("a line [with brackets]")
    display.end()


def test_plain_lines():
    file = io.StringIO()
    run(PlainDisplay(file=file, interval=0.0))
    lines = file.getvalue().splitlines()
    assert lines[0] == "CartPole-v1 · relax"
    assert lines[1].startswith("step 500 of 2,000 | mean return none yet | ")
    assert lines[2].startswith("step 1,000 of 2,000 | mean return 21.2 | ")
    assert lines[2].endswith("left") and "steps/s" in lines[2]
    assert lines[3] == "a line [with brackets]"
    assert len(lines) == 4


def test_plain_lines_come_only_every_few_seconds():
    file = io.StringIO()
    run(PlainDisplay(file=file, interval=60.0))
    assert len(file.getvalue().splitlines()) == 2


def test_the_live_line_ends_with_the_last_numbers(capsys):
    run(RichDisplay(refresh=60.0))
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "CartPole-v1 · relax"
    assert "a line [with brackets]" in out
    assert "step 1,000 of 2,000" in out and "mean return 21.2" in out


def test_a_live_display_that_never_began_can_end(capsys):
    display = RichDisplay()
    display.end()
    display.say("early")
    assert capsys.readouterr().out == "early\n"


def test_quiet_says_nothing(capsys):
    run(SilentDisplay())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("tty", "kind"), [(True, RichDisplay), (False, PlainDisplay)])
def test_the_display_fits_the_output(monkeypatch, tty, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    assert isinstance(make_display(), kind)
    assert isinstance(make_display(quiet=True), SilentDisplay)
