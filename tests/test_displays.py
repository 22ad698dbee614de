"""Displays: one line at the start, progress now and then, nothing when quiet."""

from __future__ import annotations

import io
import math
import sys
import time
from contextlib import contextmanager

import pytest

from relax_rl.runs.displays import (
    Display,
    PlainDisplay,
    RichDisplay,
    counting,
    describe_duration,
    describe_number,
    make_display,
    text_table,
)


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
    run(Display())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("tty", "kind"), [(True, RichDisplay), (False, PlainDisplay)])
def test_the_display_fits_the_output(monkeypatch, tty, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    assert isinstance(make_display(), kind)
    assert type(make_display(quiet=True)) is Display


def run_two(display):
    display.say("before")
    display.begin("", name="relax", total=1000)
    display.update(10, 0.25)
    display.begin("", name="rebar", total=1000)
    display.update(1000, 0.5)
    display.say("a line")
    display.end()


def test_runs_that_follow_one_another_are_named():
    file = io.StringIO()
    run_two(PlainDisplay("mean theta {:.3f}".format, file=file, interval=0.0))
    first, second, third, last = file.getvalue().splitlines()
    assert (first, last) == ("before", "a line")
    assert second.startswith("relax: step 10 of 1,000 | mean theta 0.250 | ")
    assert third.startswith("rebar: step 1,000 of 1,000 | mean theta 0.500 | ")


def test_runs_that_follow_one_another_have_a_bar_each(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    run_two(RichDisplay("mean theta {:.3f}".format, refresh=60.0))
    out = capsys.readouterr().out
    assert all(text in out for text in ("before", "a line", "relax", "rebar", "step 10 of 1,000", "mean theta 0.250"))
    assert "step 1,000 of 1,000" in out and "mean theta 0.500" in out


def test_what_is_counted_has_a_bar_in_a_terminal_alone(monkeypatch, capsys):
    with counting("rollouts", 5) as progress:
        progress(3)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with counting("rollouts", 5) as progress:
        progress(5)
    assert capsys.readouterr().out


def test_durations():
    told = [describe_duration(seconds) for seconds in (None, -3.0, 59.6, 3_725.0)]
    assert told == ["?", "0:00", "1:00", "1:02:05"]


def test_numbers_have_the_digits_that_their_size_asks_for():
    told = [describe_number(x) for x in (321.46, -21.24, 4.254, 0.9534, -0.5, 0.0123, 0.00123, 0.0)]
    assert told == ["321.5", "-21.2", "4.25", "0.953", "-0.500", "0.012", "0.0012", "0.000"]
    file = io.StringIO()
    display = PlainDisplay(file=file, interval=0.0)
    display.begin("", total=10)
    display.update(5, 0.9534)
    assert "| mean return 0.953 |" in file.getvalue()


def test_what_takes_a_while_is_told_with_its_time(monkeypatch, capsys):
    file = io.StringIO()
    plain = PlainDisplay(file=file, interval=0.02)
    with plain.busy("compiling"):
        time.sleep(0.1)
    first, *between, last = file.getvalue().splitlines()
    assert first == "compiling ..." and last == "  done in 0:00"
    assert between and set(between) == {"  0:00 so far"}
    rich = RichDisplay()
    rich.begin("a run", total=10)
    monkeypatch.setattr("relax_rl.runs.displays._ticking", ticking_once)
    with rich.busy("compiling"):
        pass
    rich.end()
    out = capsys.readouterr().out
    assert "compiling ..." in out and "  done in 0:00" in out
    with Display().busy("compiling"):
        pass
    assert capsys.readouterr().out == ""


@contextmanager
def ticking_once(seconds, call):
    call(65.0)
    yield


@pytest.mark.parametrize("how", ["solved", ""])
def test_the_bar_of_a_run_that_is_solved_is_full(how, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    display = RichDisplay()
    display.begin("a run", total=500_000)
    display.update(110_908, 475.25)
    if how:
        display.done(how)
    task = display._progress.tasks[0]
    assert task.finished == bool(how) and task.completed == 110_908
    display.end()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("step 110,908 of 500,000 ") and ("mean return 475.2, solved" in last) == bool(how)


@pytest.mark.parametrize("columns", [80, 200])
def test_the_live_line_and_its_numbers_stand_whole(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    display = RichDisplay()
    display.begin("a run", total=500_000)
    display.update(142_345, 475.25)
    display.say("runs/" + 30 * "long" + "/name")
    display.end()
    lines = capsys.readouterr().out.splitlines()
    assert "runs/" + 30 * "long" + "/name" in lines
    last = lines[-1].rstrip()
    assert len(last) <= columns and "\u2026" not in last
    assert all(part in last for part in ("step 142,345 of 500,000", "mean return 475.2", "steps/s", "left"))


def test_a_table_of_text():
    table = text_table("Title", ("name", "a", "long column"), [("first one", "0.07 ± 0.01", "1"), ("b", "2", "")])
    assert table.splitlines() == [
        "Title",
        "name                 a  long column",
        "---------  -----------  -----------",
        "first one  0.07 ± 0.01            1",
        "b                    2",
    ]
