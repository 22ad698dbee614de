"""The toy problem of REBAR and RELAX at the published settings, beyond them, and what of it holds.

    python -m benchmarks.toy                     # about ten minutes on one core; studies that are done are skipped
    python -m benchmarks.toy --studies paper

Every study is a `train_agent.py toy` command. It leaves its tables and figures in `results/toy/<study>/`;
`results/toy/toy.md` says what the studies show. To measure one anew, delete its folder first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.contestants import APPLICABLE
from relax_rl.experiments.toy.run import run_toy
from relax_rl.settings.synonyms import flag

__all__ = ["STUDIES", "Study", "main"]

TOY_RESULTS = RESULTS / "toy"
GROUP = 10
"""Seeds of one published-size experiment."""


@dataclass(frozen=True)
class Study:
    """One command.

    Attributes:
        question: what it answers.
        config: its settings.
        curves: whether every measurement is kept, besides the summary.
    """

    question: str
    config: ToyConfig
    curves: bool = False

    @property
    def command(self) -> str:
        """As a user types it."""
        default = asdict(ToyConfig())
        given = {key: value for key, value in asdict(self.config).items() if value != default[key]}
        options = (
            f" {flag(key)} {' '.join(value) if isinstance(value, tuple) else value}" for key, value in given.items()
        )
        return f"python train_agent.py toy{''.join(options)}"


STUDIES = {
    "paper": Study("the published settings, ten seeds", ToyConfig(), curves=True),
    "seeds": Study("the same with 200 seeds: how much of it is chance", ToyConfig(seeds=200, log_interval=500)),
    "fixed": Study(
        "theta fixed at 1/2: how close each control variate comes to its floor",
        ToyConfig(fixed_theta=0.5, estimators=("reinforce", "nvil", "rebar", "relax", "dlax", "marginal")),
    ),
    "easier": Study("t = 0.45, as in the REBAR paper", ToyConfig(target=0.45)),
    "independent": Study("independent noise of the conditional sample", ToyConfig(coupling="independent")),
    "all": Study("every estimator for one bit", ToyConfig(estimators=APPLICABLE, log_interval=100)),
    "ten": Study(
        "ten outcomes",
        ToyConfig(
            outcomes=10,
            estimators=("reinforce", "nvil", "rloo", "disarm", "rebar", "relax", "marginal"),
            log_interval=100,
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the studies that are not done, then say what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES), help="which of them to run")
    for name in parser.parse_args(argv).studies:
        if not (TOY_RESULTS / name).exists():
            print(f"{name}: {STUDIES[name].command}", flush=True)
            _measure(name, STUDIES[name])
    done = {name: _result(name) for name in STUDIES if (TOY_RESULTS / name).exists()}
    write_text(TOY_RESULTS / "toy.md", _report(done))
    if {"paper", "seeds"} <= set(done):
        write_json(TOY_RESULTS / "checks.json", dict(_checks(done)))


def _measure(name: str, study: Study) -> None:
    """Into a folder elsewhere, which takes its place among the results when it is whole."""
    TOY_RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOY_RESULTS, suffix=".tmp") as temporary:
        folder, _ = run_toy(
            ToyConfig(**{**asdict(study.config), "run_dir": str(Path(temporary) / name)}), command=study.command
        )
        if not study.curves:
            (folder / "curves.csv").unlink()
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", {key: value for key, value in settings.items() if key != "run_dir"})
        shutil.move(folder, TOY_RESULTS / name)


def _result(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((TOY_RESULTS / name / "toy.json").read_text(encoding="utf-8"))
    return result


def _report(done: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# The toy problem",
        "",
        "min over theta of E[(b - t)²], b ~ Bernoulli(theta). Settings and words: docs/toy.md.",
    ]
    if {"paper", "seeds"} <= set(done):
        lines += ["", "## What was asked, and what holds", "", "| asked | measured |", "|---|---|"]
        lines += [f"| {check} | {text} |" for check, text in _checks(done)]
    for name in done:
        study, folder = STUDIES[name], TOY_RESULTS / name
        table = (folder / "toy.md").read_text(encoding="utf-8").partition("\n\n")[2].strip()
        figures = " · ".join(f"[{path.stem}]({name}/{path.name})" for path in sorted(folder.glob("*.png")))
        lines += [
            "",
            f"## {study.question[0].upper()}{study.question[1:]}",
            "",
            f"`{study.command}`",
            "",
            table,
            "",
            figures,
        ]
    return "\n".join(lines) + "\n"


def _checks(done: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What is asked of ten seeds, and the same of 200."""
    for study, seeds in (("paper", "seeds 0 to 9"), ("seeds", "200 seeds")):
        entries = done[study]["estimators"]
        relax, reinforce = (entries[name]["log_variance"]["median"] for name in ("relax", "reinforce"))
        theta = {name: entries[name]["theta"]["median"] for name in ("reinforce", "rebar", "relax")}
        yield (
            f"RELAX's median log variance from step 2,000 on at least 4 below REINFORCE's, {seeds}",
            f"{relax:.2f} against {reinforce:.2f}: {reinforce - relax:.2f} below",
        )
        yield f"RELAX's median theta below 0.1 at the end, {seeds}", f"{theta['relax']:.3f}"
        yield (
            f"REINFORCE's and REBAR's median theta above 0.4 at the end, {seeds}",
            f"{theta['reinforce']:.3f} and {theta['rebar']:.3f}",
        )
    groups = {name: _group_medians(done["seeds"]["estimators"][name]["seeds"]["theta"]) for name in theta}
    both = sum(min(pair) > 0.4 for pair in zip(groups["reinforce"], groups["rebar"], strict=True))
    count = len(groups["relax"])
    yield (
        f"of {count} groups of {GROUP} seeds: REINFORCE's and REBAR's median theta above 0.4, both in one group",
        f"{sum(x > 0.4 for x in groups['reinforce'])}, {sum(x > 0.4 for x in groups['rebar'])}, {both}",
    )
    yield (
        f"of {count} groups of {GROUP} seeds: RELAX's median theta below 0.1",
        f"{sum(x < 0.1 for x in groups['relax'])}",
    )


def _group_medians(values: Sequence[float]) -> list[float]:
    return [statistics.median(values[k : k + GROUP]) for k in range(0, len(values) - GROUP + 1, GROUP)]


if __name__ == "__main__":
    main()
