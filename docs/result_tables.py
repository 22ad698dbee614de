"""Rows of the committed results, for the pages of algorithms: no number of theirs is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_COMBINED = re.compile(r"\[([^]]+)\]\([^)]*\)")

Row = dict[str, str]


def tables(path: Path) -> dict[str, list[list[Row]]]:
    """The tables of a page of results by heading, rows by the names of their columns."""
    found: dict[str, list[list[Row]]] = {}
    heading, head = "", list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = _COMBINED.sub(r"\1", line.lstrip("# "))
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
            found.setdefault(heading, []).append([])
        elif not set(line) <= set("|-: "):
            found[heading][-1].append(dict(zip(head, cells, strict=True)))
    return found


def learning(tasks: Sequence[str], contestants: Sequence[str]) -> str:
    """How soon the presets of this package and Stable-Baselines3 with its zoo's settings solve tasks."""
    known = tables(RESULTS / "learning.md")
    lines = ["| task | contestant | seeds that got there | median steps, 95% interval |", "|---|---|---:|---:|"]
    for task in tasks:
        for row in known[task][0]:
            if row["contestant"] in contestants:
                ((asked, reached), (_, steps)) = list(row.items())[2], list(row.items())[4]
                lines.append(f"| {task}, {asked.split()[-1]} | {row['contestant']} | {reached} | {steps} |")
    return "\n".join(lines) + "\n"


def contests() -> str:
    """A2C with the presets beside PPO with its zoo's settings, by the measure of each task."""
    measures = {"curve": "mean of the curve", "final": "last 100 episodes", "steps": "steps to the threshold"}
    lines = ["| task | steps | measured | A2C of this package | SB3 PPO |", "|---|---:|---|---:|---:|"]
    for row in tables(RESULTS / "contests.md")["Presets and PPO"][0]:
        theirs = "" if row["PPO"].endswith("(published)") else row["PPO"]
        scores = " | ".join(
            text.replace("beyond", "not reached") or "not trained yet" for text in (row["ours"], theirs)
        )
        lines.append(f"| {row['task']} | {row['steps']} | {measures.get(row['measure'], row['measure'])} | {scores} |")
    return "\n".join(lines) + "\n"


def five_minutes() -> str:
    """A2C with the presets beside Stable-Baselines3's agents after five minutes; the best of a task in bold."""
    heads = {"ours": "A2C of this package", "sb3-ppo": "SB3 PPO", "sb3-a2c": "SB3 A2C", "sb3-sac": "SB3 SAC"}
    lines = [f"| task | {' | '.join(heads.values())} |", "|---" + "|---:" * len(heads) + "|"]
    task = ""
    for row in tables(RESULTS / "five_minutes.md")["After two minutes and after five"][0]:
        task = row["task"] or task
        if row["seconds"] == "300":
            lines.append(f"| {task} | {' | '.join(row[label] for label in heads)} |")
    return "\n".join(lines) + "\n"


def against_ppo(tasks: Sequence[str], contestants: dict[str, str]) -> str:
    """Final scores with and without a surrogate; `contestants` are called so on the page, by their names in the results."""
    known = tables(RESULTS / "against_ppo.md")
    lines = ["| task | contestant | runs | final score | solved | steps to solve |", "|---|---|---:|---:|---:|---:|"]
    for task in tasks:
        for row in known[task][0]:
            if row["contestant"] in contestants:
                cells = (contestants[row["contestant"]], row["runs"], row["final score"], row["solved"], row["steps"])
                lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def papers_tasks(contestants: dict[str, str]) -> str:
    """How agents with the presets of then solve the tasks of the RELAX paper; `contestants` as for `against_ppo`."""
    lines = ["| task | contestant | solved | episodes to solve | steps to solve |", "|---|---|---:|---:|---:|"]
    for row in tables(RESULTS / "papers_tasks.md")["The tasks of the paper"][0]:
        if row["contestant"] in contestants:
            cells = (contestants[row["contestant"]], row["solved"], row["episodes to solve"], row["steps to solve"])
            lines.append(f"| {row['task']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def variance(tasks: Sequence[str], estimator: str) -> str:
    """What an estimator leaves of the variance of A2C's gradient at frozen agents."""
    lines = ["| task | early | midway | late |", "|---|---:|---:|---:|"]
    for task in tasks:
        for table in (
            table for found in tables(RESULTS / "against_ppo" / task / "report.md").values() for table in found
        ):
            for row in table:
                if row.get("estimator") == estimator:
                    lines.append(f"| {task} | {' | '.join(list(row.values())[1:])} |")
    return "\n".join(lines) + "\n"


def toy(names: Iterable[str]) -> str:
    """How estimators do on the toy problem of one bit, ten seeds."""
    lines = ["| estimator | expected loss at the end | log variance |", "|---|---:|---:|"]
    rows = tables(RESULTS / "toy" / "toy.md")["Every estimator for one bit"][0]
    known = {row["estimator"]: row for row in rows}
    for name in (name for name in names if name in known):
        row = known[name]
        lines.append(f"| `{name}` | {row['expected loss at the end']} | {row['log variance']} |")
    return "\n".join(lines) + "\n"


def decision() -> str:
    """Which estimator does best on two functions, for each kind of outcome and number of evaluations."""
    rows = tables(RESULTS / "decision.md")["In short"][0]
    lines = [f"| {' | '.join(rows[0])} |", "|---|---:|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]) + "\n"


def at_equal_evaluations(names: Sequence[str], budget: int = 4) -> str:
    """Errors over leave-one-out's at as many evaluations of f, smooth and rough, by kind of outcome; variants of a name too."""
    found = json.loads((RESULTS / "decision.json").read_text(encoding="utf-8"))
    known = {
        (entry["estimator"], entry["kind"], entry["function"]): entry
        for entry in found["found"]
        if entry["budget"] == budget
    }
    every = dict.fromkeys(entry["estimator"] for entry in found["found"])
    shown = [each for name in names for each in every if each.partition(", ")[0] == name]
    kinds = [kind for kind in found["kinds"] if any((name, kind, "smooth") in known for name in shown)]
    lines = [f"| estimator | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in shown:
        own = [[known.get((name, kind, function)) for function in ("smooth", "rough")] for kind in kinds]
        cells = [
            " / ".join(f"{each['mse'] / known['rloo', kind, each['function']]['mse']:.2g}" for each in pair if each)
            for kind, pair in zip(kinds, own, strict=True)
        ]
        if any(cells):
            kept = any(each["kept"] for pair in own for each in pair if each)
            lines.append(f"| `{name}`{' †' if kept else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bounds() -> str:
    """Squared errors of gradients of the importance-weighted bound, a row for each estimator and kind of outcome."""
    found = tables(RESULTS / "importance_weighted.md")
    heads = list(found["Gaussian"][0][0])[1:]
    lines = [f"| outcome | estimator | {' | '.join(heads)} |", "|---|---|---:|---:|---:|"]
    for problem, (rows,) in found.items():
        for name, *cells in (row.values() for row in rows):
            lines.append(f"| {problem} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def autoencoders(names: Iterable[str]) -> str:
    """Training bound and log variance of the encoder's gradient on MNIST with one linear layer of bits."""
    task = "MNIST, one linear layer"
    found = tables(RESULTS / "vae" / "vae.md")["Equal steps on every row: 50,000 steps"]
    (bound,), (noise,) = ([row for row in found[k] if row[""] == task] for k in (0, 3))
    lines = ["| estimator | training bound, nats | log variance of the gradient |", "|---|---:|---:|"]
    for name in (name for name in names if name in bound):
        lines.append(f"| `{name}` | {bound[name].split(' (')[0]} | {noise[name]} |")
    return "\n".join(lines) + "\n"


GROUPS: dict[str, tuple[str, ...]] = {
    "Learning": (
        *("learning_curves", "learning", "against_ppo", "papers_tasks", "hybrid", "masks", "memory", "asymmetric"),
        *(
            "small_images",
            "twice_the_batch",
            "larger_batches",
            "search",
            "run_off",
            "factorial",
            "contests",
            "five_minutes",
            "unknown_tasks",
        ),
        *("candidates", "tuning", "agents", "peers"),
    ),
    "Variance": ("headroom", "trained_along", "ablation", "orders", "decision", "importance_weighted", "library_peers"),
    "Speed": (*("estimators", "throughput", "whole_runs", "time_to_solve", "library_speed", "scaling", "beside"),),
    "Reliability": ("reliability", "third_party", "newcomer"),
    "Autoencoders and the toy problem": ("vae", "toy"),
}
"""Results by what they are about; whatever is in no group stands at the end."""
_BESIDE = {
    "learning.md": (
        "learning curves of this package's agents with their presets, and of Stable-Baselines3's A2C and PPO with "
        "rl-baselines3-zoo's settings, seeds 0 to 9",
        "at commit 807239f: `python -m benchmarks.report`",
    ),
    "vae": (
        "discrete variational autoencoders on the rows of the published tables",
        "`python -m benchmarks.vae`; speed.md by `python -m benchmarks.vae_speed`",
    ),
    "reliability": ("kills, damaged files, odd command lines and broken environments", "`make soak`"),
}
"""What has no line of its own in the table of commands."""


def index() -> str:
    """Every page and figure among the results, by group, with the command that makes it."""
    known = commands()
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in RESULTS.rglob("*") if path.suffix in (".md", ".png")):
        files.setdefault(_name(path), []).append(path)
    groups = {**GROUPS, "Others": tuple(sorted(files.keys() - {name for names in GROUPS.values() for name in names}))}
    lines: list[str] = []
    for heading, names in groups.items():
        present = [name for name in names if name in files]
        lines += [f"\n## {heading}\n"] if present else []
        for name in present:
            lines += _entry(name, files[name], *known.get(f"{name}.md", known.get(name, ("", ""))))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")


def commands() -> dict[str, tuple[str, str]]:
    """What is measured and the command, by name and by file of the results, from the tables of the benchmarks' own page."""
    found: dict[str, tuple[str, str]] = dict(_BESIDE)
    text = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3:
            what, command, where = cells
        elif len(cells) == 2 and cells[0].startswith("`results/"):
            where, _, what = cells[0].partition(": ")
            command = f"at commit 807239f: {cells[1]}"
        else:
            continue
        for name in re.findall(r"`results/(\w+(?:\.md)?)", where):
            found.setdefault(name, (what, command))
    return found


def _entry(name: str, files: Sequence[Path], what: str, command: str) -> list[str]:
    """A section of results: what they are, the command, pages, figures, and what there is of each task."""
    pages = [path for path in files if path.suffix == ".md"]
    top = [path for path in pages if path in (RESULTS / f"{name}.md", RESULTS / name / f"{name}.md")]
    title = _title(top[0]) if top else name.replace("_", " ").capitalize()
    lines = [
        f"### {title}\n",
        f"{what[:1].upper()}{what[1:]}.\n" if what else "",
        f"{command[:1].upper()}{command[1:]}\n" if command else "",
    ]
    lines += [f"**Tables:** {' · '.join(f'[{path.name}]({_link(path)})' for path in top)}\n"] if top else []
    lines += [
        f"![{_words(path)}]({_link(path)})\n" for path in files if path.suffix == ".png" and path.parent == RESULTS
    ]
    deeper: dict[Path, list[Path]] = {}
    for path in files:
        if path.parent != RESULTS and path not in top:
            deeper.setdefault(path.parent.parent if path.parent.name == "figures" else path.parent, []).append(path)
    if deeper:
        lines += ["| of | tables | figures |", "|---|---|---|"]
        for folder, inside in deeper.items():
            tables_, figures = (
                ", ".join(f"[{_words(path)}]({_link(path)})" for path in inside if path.suffix == suffix)
                for suffix in (".md", ".png")
            )
            lines.append(f"| {folder.relative_to(RESULTS).as_posix()} | {tables_} | {figures} |")
        lines.append("")
    return lines


def _name(path: Path) -> str:
    """Of the results that a file belongs to."""
    first = path.relative_to(RESULTS).parts[0]
    if (RESULTS / first).is_dir():
        return "learning_curves" if first == "learning" else first
    return "learning" if first.startswith("learning_") and path.suffix == ".png" else path.stem


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _link(path: Path) -> str:
    return f"../benchmarks/results/{path.relative_to(RESULTS).as_posix()}"


def _words(path: Path) -> str:
    """What a file shows, from its name: `CartPole-v1-curves.png` among those of CartPole-v1 shows curves."""
    words = path.stem.rpartition("-")[2] if path.parent.name == "figures" else path.stem
    return words.replace("_", " ")
