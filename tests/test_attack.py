"""Samples of the standing attack, which `make soak` makes whole, and whether it would see what it looks for."""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from relax_rl.errors import RelaxRLError
from tests.attack import ATTACKS, report
from tests.attack import __main__ as whole
from tests.attack.endurance import drift
from tests.attack.trials import Attack, attempt, untidy

SEED = 0
SAMPLE = [(attack, number) for attack in ATTACKS for number in range(attack.sample)]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes as Linux shows them")


@pytest.mark.parametrize(("attack", "number"), SAMPLE, ids=[f"{attack.name}-{number}" for attack, number in SAMPLE])
def test_it_holds(attack: Attack, number: int, tmp_path: Path) -> None:
    fault = attack.attempt(SEED, number, tmp_path)
    assert fault is None, f"{attack.about(SEED, number)}: {fault}"


def test_a_short_training_keeps_its_memory_and_its_files(tmp_path: Path) -> None:
    assert drift(SEED, "sync", tmp_path, 4_000) is None


def test_there_are_as_many_trials_as_are_promised() -> None:
    tried = {attack.name: (attack.trials, attack.sample) for attack in ATTACKS}
    assert tried["kills"] == (60, 8) and tried["mutations"] == (1000, 60) and tried["command-lines"] == (500, 60)
    assert tried["environments"][0] >= 60 and tried["environments"][1] == 8


# Whether it sees


def say(text: str, code: int = 2) -> int:
    print(text, file=sys.stderr)
    return code


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("does", "seen"),
    [
        (lambda: fail(KeyError("x")), "KeyError"),
        (lambda: fail(SystemExit(1)), "SystemExit"),
        (lambda: fail(RelaxRLError("one\ntwo")), "an error of 2 lines"),
        (lambda: say("error: x", 1), "exit code 1"),
        (lambda: say("error: x\nmore"), "exit code 2 with 1 lines"),
        (lambda: say("error: x\nerror: y"), "2 lines of error"),
        (lambda: say("it cannot be done"), "0 lines of error"),
        (lambda: say(f"error: {'x' * 5000}"), "1 lines of error"),
        (lambda: say("error: x", 0), "exit code 0 with an error"),
        (lambda: say("Traceback (most recent call last):", 0), "a traceback"),
        (lambda: say("error: \x1b[2J"), "control characters"),
        (lambda: len(b"x" * (3 * 2**29)) * 0, "GiB of memory"),
    ],
)
def test_what_is_untidy_is_seen(does: Callable[[], int], seen: str) -> None:
    found = untidy(attempt(does))
    assert found is not None and seen in found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_never_ends_is_ended() -> None:
    def wait() -> int:
        while True:
            warnings.warn("still here", stacklevel=1)  # pytest keeps each of them
            time.sleep(0.01)

    gc.collect()
    gc.disable()  # what other tests have left would be swept up in here, and the alarm ring in pytest's words about it
    try:
        found = untidy(attempt(wait, within=0.3))
    finally:
        gc.enable()
    assert found is not None and "no end" in found


def test_what_is_tidy_is_no_fault() -> None:
    assert untidy(attempt(lambda: say("warning: w\nerror: x"))) is None
    assert untidy(attempt(lambda: fail(RelaxRLError("x")))) is None


# The report


def test_a_whole_attack_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(seed: int, number: int, folder: Path) -> str | None:
        assert not list(folder.iterdir())
        tried.append(number)
        return "it broke" if number == 1 else None

    tried: list[int] = []
    attack = Attack("odd", "numbers", 3, 0, odd, lambda seed, number: f"number {number} of seed {seed}")
    result = tmp_path / "reliability.json"
    monkeypatch.setattr(whole, "ATTACKS", (attack,))
    monkeypatch.setattr(whole, "commit", lambda: "abc")
    monkeypatch.setattr(whole, "read", lambda: report.read(result))
    monkeypatch.setattr(whole, "write", lambda rows: report.write(rows, result, None))

    def called(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["attack", *words])
        return whole.main()

    assert called("--seed", "3") == 1 and tried == [0, 1, 2]
    row = json.loads(result.read_text())["attacks"][0]
    assert (row["tried"], row["seed"], row["commit"]) == (3, 3, "abc")
    assert row["failures"] == [{"number": 1, "about": "number 1 of seed 3", "fault": "it broke"}]
    assert "| odd | numbers | 3 | 3 | 1 | abc |" in result.with_suffix(".md").read_text()
    assert called("--seed", "3") == 1 and tried == [0, 1, 2]  # tried before
    assert called("--seed", "3", "--anew") == 1 and len(tried) == 6
    assert called("--seed", "4") == 1 and len(tried) == 9
    assert called("--only", "odd:0") == 0 and called("--only", "odd:0-1") == 1 and len(tried) == 12
    assert "odd 1: number 1 of seed 3: it broke" in capsys.readouterr().out


def test_the_documentation_tells_what_the_report_does() -> None:
    rows = report.read()
    assert [row.attack for row in rows] == [attack.name for attack in ATTACKS]
    assert all(row.tried == attack.trials for row, attack in zip(rows, ATTACKS, strict=True))
    _, told, _ = report.DOCUMENT.read_text(encoding="utf-8").split(report.MARK)
    assert told == report.table(rows)
    assert report.table(rows) in report.RESULT.with_suffix(".md").read_text(encoding="utf-8")
