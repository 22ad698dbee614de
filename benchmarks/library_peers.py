"""This package's distributions and estimators beside published code: the laws, the gradients, and with `--speed` the time.

    python -m benchmarks.library_peers --peers PATH            # laws and gradients: a few minutes on one core
    python -m benchmarks.library_peers --peers PATH --speed    # times and memory; the machine must be otherwise idle

`benchmarks/peer_code.py` says how to fill the folder PATH with checkouts and packages: relaxit, Storchastic, and the
repositories of Gadetsky et al. (2020), Kool et al. (2019, 2020) and Xie and Ermon (2019). A peer that is absent is left out, in a
line. Writes what it measured to `results/library_peers.json`, and everything there is to `results/library_peers.md`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.estimators import in_turns, machine, peak_memory
from benchmarks.peer_code import load
from benchmarks.peer_gradients import OURS, Contestant, contestants, exact
from benchmarks.peer_laws import laws
from benchmarks.tasks import RESULTS, at_least_one, commit, write_json, write_text
from benchmarks.throughput import spread

__all__ = ["gradients", "main", "report", "speeds"]

CALL = 2_000
"""Estimates that are drawn at once, and whose time is taken."""
SEEN = 5.0
"""Standard errors from which on a bias counts as found."""

CAPTION = """# Published code on the same problems

Made by `python -m benchmarks.library_peers --peers PATH`. No code of the peers is part of this package; they are called as they
are. The script's docstring says where each comes from.
"""
LAWS = """## Laws

"Largest difference" is that of numbers made from the same noise, in float64 where the peer allows it; equal is below 1e-6.
A p-value is that of a test on 20,000 draws: of chi-square on outcomes against exact probabilities, or of Kolmogorov and
Smirnov on coordinates, differences and mixtures, the smallest times their number; equal is above 1e-4.
"""
GRADIENTS = """## Gradients

{rows:,} estimates each of the gradient of E[f] at the parameters, with the same f, the same weights of c and as many evaluations
of f. Bias is the distance of their mean from the exact gradient, over the norm of that gradient, and in standard errors the
largest of any coordinate. Variance is the sum over coordinates, ± one standard error, and once more over this package's.
Those marked * are biased by design; **biased** is what is not, and is off by more than 5 standard errors all the same.
"""
SPEED = """## Time and memory

One call of {size:,} estimates, eager, on one thread: medians over {rounds} rounds, everyone in turns, and the most that a call
holds in tensors. {cores} cores, torch {torch}, load average before the run {load_before}.
"""


def gradients(entries: Sequence[Contestant], rows: int) -> list[dict[str, Any]]:
    """Bias and variance of everyone, from `rows` estimates each."""
    found = []
    for entry in entries:
        torch.manual_seed(0)
        target = exact(entry.problem)
        drawn = torch.cat([entry.draw(min(rows, CALL)) for _ in range(max(1, rows // CALL))]).double()
        mean, count = drawn.mean(0), len(drawn)
        squares = (drawn - mean).square().sum(-1)
        error = drawn.std(0) / count**0.5
        found.append(
            {
                **{name: value for name, value in vars(entry).items() if name != "draw"},
                "rows": count,
                "bias": float((mean - target).norm() / target.norm()),
                "bias_in_errors": float(((mean - target) / error).abs().max()),
                "variance": float(squares.mean()) * count / (count - 1),
                "variance_error": float(squares.std()) / count**0.5,
            }
        )
        print(f"{entry.problem}: {entry.estimator} by {entry.who}: variance {found[-1]['variance']:.3g}", flush=True)
    return found


def speeds(entries: Sequence[Contestant], rounds: int, turn: float) -> dict[str, Any]:
    """Milliseconds and peak KiB of one call of everyone, in turns."""
    steps = {(e.problem, e.estimator, e.who): (lambda e=e: e.draw(CALL)) for e in entries}
    seconds = in_turns(steps, rounds, turn)
    return {
        "rounds": rounds,
        "size": CALL,
        "machine": machine(),
        "calls": [
            {
                **dict(zip(("problem", "estimator", "who"), key, strict=True)),
                "milliseconds": spread([1e3 * x for x in seconds[key]], 4),
                "peak_kib": round(peak_memory(step) / 1024, 1),
            }
            for key, step in steps.items()
        ],
    }


def report(results: Mapping[str, Any]) -> str:
    """The Markdown of what there is."""
    lines = [
        CAPTION,
        "| peer | |",
        "|---|---|",
        *(f"| {name} | {told} |" for name, told in results["peers"].items()),
        "",
    ]
    if "laws" in results:
        lines += [LAWS, "| peer | what | measure | | equal |", "|---|---|---|---:|---|"]
        for law in results["laws"]:
            value, told = f"{law['value']:.2g}", "yes" if law["equal"] else "**no**"
            lines.append(f"| {law['who']} | {law['what']} | {law['measure']} | {value} | {told} |")
        lines.append("")
    if "gradients" in results:
        lines += [GRADIENTS.format(rows=results["gradients"][0]["rows"]), *_gradient_table(results["gradients"]), ""]
    if "speed" in results:
        about = results["speed"]
        lines += [SPEED.format(**about, **about["machine"]), *_speed_table(about["calls"]), ""]
    return "\n".join(lines)


def _gradient_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| problem | estimator | evaluations | by | bias | in errors | variance | over ours |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    own = {(row["problem"], row["estimator"]): row["variance"] for row in rows if row["who"] == OURS}
    for row in rows:
        ratio = row["variance"] / own[row["problem"], row["estimator"]]
        off = "*" if row["biased"] else " **biased**" if row["bias_in_errors"] > SEEN else ""
        lines.append(
            f"| {row['problem']} | {row['estimator']} | {row['evaluations']} | {row['who']} | {row['bias']:.3g}{off} "
            f"| {row['bias_in_errors']:.1f} | {row['variance']:.4g} ± {row['variance_error']:.1g} | {ratio:.3g} |"
        )
    return lines


def _speed_table(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| problem | estimator | by | ms | times ours | memory, KiB |", "|---|---|---|---:|---:|---:|"]
    own = {(call["problem"], call["estimator"]): call for call in calls if call["who"] == OURS}
    for call in calls:
        ours = own[call["problem"], call["estimator"]]
        pairs = zip(call["milliseconds"]["rounds"], ours["milliseconds"]["rounds"], strict=True)
        ratios = sorted(there / here for there, here in pairs)
        told = "" if call is ours else f"{ratios[len(ratios) // 2]:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        middle = f"{call['milliseconds']['median']:.3g}"
        lines.append(
            f"| {call['problem']} | {call['estimator']} | {call['who']} | {middle} | {told} | {call['peak_kib']:,.0f} |"
        )
    return lines


def main() -> None:
    """Measure against the peers that are there, and write it beside what was measured before."""
    parser = argparse.ArgumentParser(description="Distributions and estimators beside published code.")
    parser.add_argument(
        "--peers", type=Path, help="folder of checkouts, with packages in it: see benchmarks/peer_code.py"
    )
    parser.add_argument("--rows", type=at_least_one, default=40_000, help="estimates of everyone")
    parser.add_argument("--speed", action="store_true", help="measure times and memory instead of laws and gradients")
    parser.add_argument("--rounds", type=at_least_one, default=9, help="turns of everyone whose time is measured")
    parser.add_argument("--turn", type=float, default=0.1, help="seconds of a turn")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    if arguments.peers is not None and not arguments.peers.is_dir():
        parser.error(f"argument --peers: {arguments.peers} is no folder; benchmarks/peer_code.py says how to fill one")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peers, about = load(arguments.peers)
    for name, told in about.items():
        print(f"{name}: {told}", flush=True)
    path = RESULTS / "library_peers.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not arguments.dry_run else {}
    results |= {"peers": about, "commit": commit()}
    entries = contestants(peers)
    if arguments.speed:
        results["speed"] = speeds(entries, arguments.rounds, arguments.turn)
    else:
        torch.manual_seed(0)
        results["laws"] = [asdict(law) | {"equal": law.equal} for law in laws(peers)]
        results["gradients"] = gradients(entries, arguments.rows)
    text = report(results)
    print(text)
    if not arguments.dry_run:
        write_json(path, results)
        write_text(path.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
