"""One comparison by `train_agent.py compare`, and what is kept of it."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tasks import RESULTS, at_least_one, write_text
from relax_rl.comparison.contestants import safe_name
from relax_rl.comparison.task import OUTCOME
from relax_rl.runs.displays import describe_number

__all__ = [
    "RUNS",
    "Match",
    "check_same_plan",
    "curve_mean",
    "final",
    "keep_unfinished",
    "main_of",
    "plan_parser",
    "play",
    "read_result",
    "run_command",
    "section",
    "spread",
    "write_summary",
]

RUNS = Path("runs/benchmarks")
UNFINISHED = "unfinished.zip"
"""Beside the results of a comparison, until there are any."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contestants on one environment."""

    env: str
    steps: int
    contestants: tuple[str, ...]
    """As `compare` takes them: label=estimator:setting=value,..."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of all of ours, over the preset of the environment."""
    peers: tuple[str, ...] = ()
    seeds: int = 10
    first_seed: int = 0
    threshold: float | None = None
    """Mean return of 100 episodes that counts as solved, if not the registered one."""
    stop_when_solved: bool = False
    variance_of: str | None = None
    """The contestant at whose frozen parameters the gradient's variance is measured, under all estimators."""
    fit_batches: int = 300
    """Rollouts that each surrogate is fitted on before."""
    commit: str | None = None
    """The last one that has the settings of this match, which is reported only; None where it can be played."""

    def command(self, folder: Path, seeds: int, jobs: int, python: str | Path = sys.executable) -> list[str]:
        """What is started; a comparison that is there already is gone on with."""
        start = [str(python), "train_agent.py", "compare", "--num-workers", str(jobs)]
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        threshold = [] if self.threshold is None else ["--threshold", f"{self.threshold:g}"]
        if (folder / "settings.json").exists():
            plan = {"estimators": self.contestants, "peers": self.peers, "set": settings, "total_steps": self.steps}
            check_same_plan(folder, {**plan, "first_seed": self.first_seed, "variance_of": self.variance_of})
            return [*start, "--resume", str(folder), "--env", self.env, "--seeds", str(seeds), *threshold]
        options = ["--env", self.env, "--estimators", *self.contestants]
        if self.env_kwargs:
            options += ["--env-kwargs", json.dumps(dict(self.env_kwargs))]
        if self.peers:
            options += ["--peers", *self.peers]
        if settings:
            options += ["--set", *settings]
        options += ["--total-steps", str(self.steps), "--seeds", str(seeds), "--run-dir", str(folder)]
        if self.first_seed:
            options += ["--first-seed", str(self.first_seed)]
        options += threshold
        if self.stop_when_solved:
            options.append("--stop-when-solved")
        if self.variance_of is not None:
            options += ["--variance", "--variance-of", self.variance_of]
            options += ["--variance-fit-batches", str(self.fit_batches)]
        return [*start, *options]


def check_same_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Leave in a line where a comparison was begun with other options than its plan has by now.

    Args:
        folder: of the comparison, with the options it was begun with in `settings.json`.
        plan: options as they are now, by name.

    Raises:
        SystemExit: naming what differs.
    """
    begun = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["options"]
    now = json.loads(json.dumps(dict(plan)))
    differs = [name for name, value in now.items() if name in begun and begun[name] != value]
    if differs:
        raise SystemExit(
            f"{folder} was begun with other {', '.join(differs)} than the plan has; delete it to begin anew, or go on with "
            "the version that began it"
        )


def plan_parser(names: Collection[str], doc: str | None) -> argparse.ArgumentParser:
    """The options of a plan, whose tasks have these names."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--tasks", nargs="+", choices=list(names), default=list(names), metavar="TASK", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--seeds", type=at_least_one, help="runs of each contestant (default: the task's)")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: one per core)")
    parser.add_argument("--report", action="store_true", help="sum up and train nothing")
    return parser


def main_of(
    matches: Mapping[str, Match], group: str, write: Callable[[], None], doc: str | None, argv: Sequence[str] | None
) -> None:
    """The command line of a plan: play what is asked for, and write down all that is there after each match.

    Args:
        matches: the plan, by the names of the folders of its results.
        group: folder of the results that they belong to.
        write: sums up what is there.
        doc: of the script.
        argv: arguments; those of the process if None.
    """
    args = plan_parser(matches, doc).parse_args(argv)
    for name in args.tasks:
        if args.report:
            keep_unfinished(matches[name], RUNS / group / name, RESULTS / group / name)
            continue
        if matches[name].commit is not None:
            print(f"{name} is played at commit {matches[name].commit}, which has its settings; reported as it stands")
            continue
        play(name, matches[name], group, seeds=args.seeds, jobs=args.jobs)
        write()
    write()


def read_result(group: str, name: str) -> dict[str, Any] | None:
    """The numbers that are kept of a comparison, if it has been played."""
    file = RESULTS / group / name / "comparison.json"
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def play(
    name: str,
    match: Match,
    group: str,
    *,
    seeds: int | None = None,
    jobs: int = 0,
    python: str | Path = sys.executable,
) -> Path:
    """Run a comparison to its end, from where it stands or was kept unfinished, and keep its report, numbers and figures.

    Args:
        name: of its folders.
        match: what is compared.
        group: folder of the results that it belongs to.
        seeds: other than the match's own.
        jobs: runs side by side; 0 takes one per core.
        python: that runs the comparison.

    Returns:
        The folder with what is kept, `results/<group>/<name>`.
    """
    folder, kept = RUNS / group / name, RESULTS / group / name
    wanted, there = match.seeds if seeds is None else seeds, _seeds_of(read_result(group, name))
    if there > wanted or (there == wanted and not folder.exists()):
        print(f"{name} is there, with {there} runs of each; delete {kept} to play it anew", flush=True)
        return kept
    if not folder.exists() and (kept / UNFINISHED).exists():
        shutil.unpack_archive(kept / UNFINISHED, folder)
    numbers = folder / "comparison.json"
    numbers.unlink(missing_ok=True)
    try:
        run_command(match.command(folder, wanted, jobs, python))
    except BaseException:
        if not _only_diverged(numbers):
            keep_unfinished(match, folder, kept)
            raise
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for file in ("report.md", "settings.json"):
        shutil.copy(folder / file, kept / file)
    # As written by the comparison, with a number a line, it would be half a megabyte.
    found = json.loads(numbers.read_text(encoding="utf-8"))
    write_text(kept / "comparison.json", json.dumps(found, separators=(",", ":")) + "\n")
    shutil.copytree(folder / "figures", kept / "figures")
    return kept


def _seeds_of(found: Mapping[str, Any] | None) -> int:
    """Runs of each contestant in a result; 0 where there is none."""
    return 0 if found is None else int(found["options"]["seeds"])


def _only_diverged(numbers: Path) -> bool:
    """Whether a comparison has come to its end, and nothing but diverged runs, which count, made it a failure."""
    if not numbers.exists():
        return False
    failures = json.loads(numbers.read_text(encoding="utf-8"))["failures"]
    return bool(failures) and all(failure["status"] == "diverged" for failure in failures)


def run_command(command: Sequence[str]) -> None:
    """Run a command that tells itself what went wrong, and leave with its exit code if it fails."""
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as failed:
        raise SystemExit(failed.returncode) from None


def keep_unfinished(match: Match, folder: Path, kept: Path) -> None:
    """Keep what a comparison needs to go on elsewhere without the runs that have ended; nothing where no more are known than are kept.

    The run at whose checkpoints gradients are measured is left out, as these are large: it is made again.
    """
    ended = [run for run in sorted(folder.glob("runs/*")) if (run / OUTCOME).exists()]
    if not (folder / "settings.json").exists() or len(ended) <= _runs_in(kept / "comparison.json"):
        return
    kept.mkdir(parents=True, exist_ok=True)
    if match.variance_of is not None:
        ended = [run for run in ended if not run.name.endswith(f"-{safe_name(match.variance_of)}-s{match.first_seed}")]
    files = [run / name for run in ended for name in ("config.json", OUTCOME, "progress.csv", "episodes.csv")]
    with zipfile.ZipFile(kept / UNFINISHED, "w", zipfile.ZIP_LZMA) as archive:
        for file in (folder / "settings.json", *(file for file in files if file.exists())):
            archive.write(file, file.relative_to(folder))


def _runs_in(numbers: Path) -> int:
    """Runs of a result that is kept; -1 where there is none."""
    if not numbers.exists():
        return -1
    tasks = json.loads(numbers.read_text(encoding="utf-8"))["environments"].values()
    return sum(len(entry["runs"]) for task in tasks for entry in task["contestants"].values())


def curve_mean(run: Mapping[str, Any]) -> float:
    """The mean of a run's learning curve; what comes before the first finished episode counts as that one."""
    points = list(map(float, run["curve"]["return"]))
    first = next(x for x in points if not math.isnan(x))
    return sum(first if math.isnan(x) else x for x in points) / len(points)


def final(run: Mapping[str, Any]) -> float:
    """The mean of a run's last 100 episodes."""
    return float(run["final"])


def section(name: str, group: str, found: Mapping[str, Any]) -> list[str]:
    """The lines of a summary on one comparison: a row for each contestant."""
    ((_, task),) = found["environments"].items()
    threshold = "none" if task["threshold"] is None else f"{task['threshold']:g}"
    lines = [
        f"## [{name}]({group}/{name}/report.md)",
        "",
        f"{task['total_steps']:,} steps, threshold {threshold}.",
        "",
        "| contestant | runs | final score | solved | steps | seconds | steps/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, contestant in task["contestants"].items():
        solved = contestant["solved"]
        cells = [label, str(len(contestant["runs"])), spread(contestant["final"])]
        if solved is None:
            cells += ["", "", ""]
        else:
            cells += [f"{solved['solved']} of {solved['runs']}", spread(solved["steps"]["median"], ",.0f")]
            cells.append(spread(solved["seconds"]["median"], ".0f"))
        cells.append(f"{median(run['steps_per_second'] for run in contestant['runs']):,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_summary(
    title: str,
    group: str,
    names: Iterable[str],
    *,
    intro: Iterable[str] = (),
    after: Callable[[str, dict[str, Any]], list[str]] = lambda name, found: [],
    file: str | None = None,
) -> None:
    """`results/GROUP.md` from the comparisons of a group that are there; nothing where none is.

    Args:
        title: its heading.
        group: folder of the results.
        names: of the comparisons, in order.
        intro: lines under the heading.
        after: (name, result) -> lines behind a comparison's table.
        file: stem of the file, if it is another than the group's.
    """
    text = [f"# {title}", "", *intro]
    known = {name: found for name in names if (found := read_result(group, name)) is not None}
    for name, found in known.items():
        text += [*section(name, group, found), "", *after(name, found)]
    if known:
        write_text(RESULTS / f"{file or group}.md", "\n".join(text))


def spread(interval: Mapping[str, Any], style: str | None = None) -> str:
    """A value of `comparison.json` with its interval; what lies beyond the comparison's steps is said in words.

    Without a style there are the digits that its size asks for.
    """
    value, low, high = (float(interval[name]) for name in ("value", "low", "high"))
    told = [
        (describe_number(x) if style is None else format(x, style)) if x < float("inf") else "beyond"
        for x in (value, low, high)
    ]
    return told[0] if value == float("inf") == low else f"{told[0]} [{told[1]}, {told[2]}]"
