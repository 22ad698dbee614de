"""Measure training throughput beside Stable-Baselines3's A2C and a plain PyTorch loop, in one process, taking turns.

    make bench                                          # ten minutes; the machine must be otherwise idle
    python -m benchmarks.throughput --matches "CartPole-v1 8x5"     # only that one; the others' results are kept
    python -m benchmarks.throughput --device cuda       # Pong and Breakout with everyone's networks on a GPU

Same environment, number of environments, steps per update and network for everyone; no logging and no checkpoints.
Each contestant first tries its options (one or two tensor threads; the peer also DummyVecEnv and SubprocVecEnv, ours
also --compile) and keeps its fastest. Then all train in turns, A B C A B C ..., and every round gives one ratio to the peer. Writes
`results/throughput.json`, `results/throughput.md` and `results/throughput.png`; of a GPU `results/throughput_cuda.*`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import stable_baselines3
import torch

from benchmarks.tasks import RESULTS, write_text
from benchmarks.throughput_contestants import ENVIRONMENT, NARROW, PEER, PLAIN, Match, candidates, fastest
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs import write_json
from relax_rl.runs.plotting import png

__all__ = ["MATCHES", "main", "measure"]

VECTOR, IMAGES, ON_GPU = 3.0, 2.0, 5.0
"""Times the peer's speed that RELAX or LAX is asked for, on vectors, on images, and on images on a GPU."""
OF_OWN_A2C = 0.6
"""Times our own A2C's speed that RELAX or LAX is asked for."""


def _match(env: str, num_envs: int, num_steps: int, *, turn: int, own: str = "relax") -> Match:
    asked = {own: IMAGES if env.startswith("ALE/") else VECTOR}
    return Match(env=env, num_envs=num_envs, num_steps=num_steps, estimators=("a2c", own), turn=turn, asked=asked)


MATCHES = (
    _match("CartPole-v1", 8, 5, turn=16_000),
    _match("CartPole-v1", 64, 32, turn=65_536),
    _match("LunarLander-v3", 8, 5, turn=8_000),
    _match("LunarLander-v3", 32, 16, turn=16_384),
    _match("InvertedPendulum-v5", 8, 16, turn=8_192, own="lax"),
    _match("HalfCheetah-v5", 8, 16, turn=8_192, own="lax"),
    _match("ALE/Pong-v5", 16, 5, turn=1_600),
    _match("ALE/Pong-v5", 32, 16, turn=2_048),
)
GPU_MATCHES = tuple(
    Match(
        env=env,
        num_envs=num_envs,
        num_steps=num_steps,
        estimators=("a2c", "relax"),
        turn=16_384,
        asked={"relax": ON_GPU},
        device="cuda",
    )
    for env in ("ALE/Pong-v5", "ALE/Breakout-v5")
    for num_envs, num_steps in ((16, 5), (32, 16))
)


def measure(match: Match, rounds: int) -> dict[str, Any]:
    """Train in turns and summarise the speeds and their ratios to the peer."""
    entrants = [fastest(options, match.turn) for options in candidates(match)]
    names = [entrant.contestant.name for entrant in entrants]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, entrant in zip(names, entrants, strict=True):
            speeds[name].append(entrant.speed(match.turn))
    found = []
    for name, entrant in zip(names, entrants, strict=True):
        sections = entrant.contestant.sections
        against = {PEER: PEER, "own A2C": "a2c"}
        ratios = {label: _ratios(speeds[name], speeds[other]) for label, other in against.items()}
        found.append(
            {
                "name": name,
                "options": entrant.options,
                "options_tried": entrant.tried,
                "settings": entrant.contestant.settings,
                "steps_per_second": spread(speeds[name], 1),
                "ratio": spread(ratios[PEER], 3),
                "ratio_to_own_a2c": spread(ratios["own A2C"], 3),
                "sections": sections(match.turn) if sections is not None else {},
            }
        )
        entrant.contestant.close()
    return {
        "match": {"name": match.name, "network": match.network, **asdict(match)},
        "rounds": rounds,
        "machine": machine(),
        "contestants": found,
    }


def _ratios(speeds: Sequence[float], others: Sequence[float]) -> list[float]:
    return [own / other for own, other in zip(speeds, others, strict=True)]


def spread(values: list[float], digits: int) -> dict[str, Any]:
    """Every value, and their median, lowest and highest."""
    summary = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    rounded = {key: round(value, digits) for key, value in summary.items()}
    return {**rounded, "rounds": [round(value, digits) for value in values]}


def table(result: dict[str, Any]) -> str:
    """The Markdown section of one match."""
    match = result["match"]
    terms = f"{match['num_envs']} environments, {match['num_steps']} steps per update; {match['network']}"
    lines = [
        f"## {match['env']}, {match['num_envs']} x {match['num_steps']}",
        "",
        f"{terms}. {result['rounds']} rounds of {match['turn']:,} steps each.",
        "",
        "| contestant | options | parameters | steps per second: median [lowest, highest] "
        + "| times SB3 A2C: median [lowest, highest] | asked |",
        "|---|---|---:|---|---|---|",
    ]
    for entry in result["contestants"]:
        speed, ratio = entry["steps_per_second"], entry["ratio"]
        asked = match["asked"].get(entry["name"])
        cells = (
            entry["name"],
            entry["options"],
            f"{entry['settings']['parameters']:,}" if entry["settings"] else "",
            f"{speed['median']:,.0f} [{speed['lowest']:,.0f}, {speed['highest']:,.0f}]",
            f"{ratio['median']:.2f} [{ratio['lowest']:.2f}, {ratio['highest']:.2f}]",
            "" if asked is None else f"at least {asked:g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    for entry in result["contestants"]:
        if entry["name"] in (*match["asked"], NARROW):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in entry["sections"].items() if share >= 0.01)
            own = entry["ratio_to_own_a2c"]["median"]
            asked = f" (asked: {OF_OWN_A2C:g})" if entry["name"] in match["asked"] else ""
            lines += ["", f"{entry['name']} at {own:.2f} of our A2C{asked}. Its time: {shares}."]
    return "\n".join([*lines, ""])


def overview(results: Sequence[dict[str, Any]]) -> str:
    """One row a match: medians as multiples of the peer."""
    lines = [
        "| task | SB3 A2C, steps/s | plain PyTorch | our A2C | RELAX or LAX | RELAX, bfloat16 | environment alone "
        "| RELAX or LAX to our A2C |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        entries = {entry["name"]: entry for entry in result["contestants"]}
        own = next(iter(result["match"]["asked"]))
        peer = f"{entries[PEER]['steps_per_second']['median']:,.0f}"
        ratios = [
            f"{entries[name]['ratio']['median']:.2f}" if name in entries else ""
            for name in (PLAIN, "a2c", own, NARROW, ENVIRONMENT)
        ]
        of_own = f"{entries[own]['ratio_to_own_a2c']['median']:.2f}"
        lines.append(f"| {' | '.join([result['match']['name'], peer, *ratios, of_own])} |")
    return "\n".join([*lines, ""])


def draw(path: Path, results: Sequence[dict[str, Any]], device: str) -> None:
    """Bars of every contestant's median ratio to the peer, with its range, by match."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    kinds = {PEER: (PEER,), PLAIN: (PLAIN,), "our A2C": ("a2c",), "our RELAX or LAX": ("relax", "lax")}
    kinds["our RELAX, bfloat16"] = (NARROW,)
    width = 0.8 / len(kinds)
    for place, (label, names) in enumerate(kinds.items()):
        found = [(row, e["ratio"]) for row, r in enumerate(results) for e in r["contestants"] if e["name"] in names]
        at = [row + (place - (len(kinds) - 1) / 2) * width for row, _ in found]
        middle = [ratio["median"] for _, ratio in found]
        below = [ratio["median"] - ratio["lowest"] for _, ratio in found]
        above = [ratio["highest"] - ratio["median"] for _, ratio in found]
        axes.bar(at, middle, width, yerr=[below, above], label=label, error_kw={"elinewidth": 0.8, "ecolor": "0.3"})
    for row, result in enumerate(results):
        for asked in result["match"]["asked"].values():
            axes.hlines(
                asked,
                row - 0.45,
                row + 0.45,
                color="0.2",
                linestyle="--",
                linewidth=1,
                label="asked of RELAX and LAX" if row == 0 else "",
            )
    axes.set_xticks(range(len(results)), [_short(r["match"]["name"]) for r in results], fontsize=8.5)
    axes.set_ylabel("training speed, times SB3's A2C")
    axes.set_title(f"Training throughput on the {'CPU' if device == 'cpu' else 'GPU'}: environments x steps per update")
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    write_bytes_atomic(path, png(figure))


def _short(name: str) -> str:
    """A match's name on two lines, without namespace and version."""
    return re.sub(r"^(?:ALE/)?(.*)-v\d+ (.*)$", r"\1\n\2", name)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }


CAPTION = """# Training throughput

Environment steps per second of whole training (acting, environments, updates), measured in turns in one process; the
ratio of a round compares turns that directly follow one another. The peer and ours count finished episodes (the peer
through its Monitor); nobody writes anything. Each side runs with the fastest of its options, all of which are in
`throughput.json` with the settings; compiling, 5 to 30 seconds once per run, is not counted. Every
learning rate is 1e-12, so that all act by the policy they start with: how long an environment's step takes depends on what
is done in it, and shall not depend on what each has learned. On Atari both play the same game: 4 frames per step, the last two pooled, grey
84 x 84, 4 frames stacked, sticky actions of the game itself; the peer through its own AtariWrapper. The plain PyTorch
loop is `benchmarks/plain_a2c.py`, written the way CleanRL writes its algorithms; the environment alone is ours, stepped
with actions chosen beforehand. Everyone computes in float32 but for RELAX's second entry on images, which runs the
convolutions and the layer after them in bfloat16 (`--precision bfloat16`). In the table, everything but the peer's speed is a multiple of that speed.
"""


def written(results: Sequence[dict[str, Any]], device: str) -> str:
    """The whole report."""
    about, name = results[-1]["machine"], _stem(device).name
    gpu = f"{about['gpu']}, " if device == "cuda" else ""
    line = f"{gpu}{about['cores']} cores, torch {about['torch']}, Stable-Baselines3 {about['stable_baselines3']}.\n"
    figure = f"![Training throughput]({name}.png)\n"
    caption = CAPTION.replace("throughput.json", f"{name}.json")
    return "\n".join([caption, line, overview(results), figure, *(table(result) for result in results)])


def _stem(device: str) -> Path:
    """The result files of a device, without their endings."""
    return RESULTS / ("throughput" if device == "cpu" else f"throughput_{device}")


def main() -> None:
    """Measure matches, put their results beside those of the others, and write everything."""
    parser = argparse.ArgumentParser(description="Training throughput beside Stable-Baselines3's A2C.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--matches", nargs="*", help="only these; none only draws anew")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of everyone's networks")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    matches = MATCHES if arguments.device == "cpu" else GPU_MATCHES
    names = [match.name for match in matches]
    chosen = names if arguments.matches is None else arguments.matches
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"unknown matches {unknown}, expected some of {names}")
    if arguments.device == "cuda" and chosen and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    stem = _stem(arguments.device)
    path = stem.with_suffix(".json")
    known = json.loads(path.read_text())["matches"] if path.exists() else []
    results = {result["match"]["name"]: result for result in known if result["match"].get("name") in names}
    for match in matches:
        if match.name in chosen:
            results[match.name] = measure(match, arguments.rounds)
            print(table(results[match.name]), flush=True)
            if not arguments.dry_run:
                write_json(path, {"matches": list(results.values())})
    ordered = [results[name] for name in names if name in results]
    print(overview(ordered))
    if ordered and not arguments.dry_run:
        write_text(stem.with_suffix(".md"), written(ordered, arguments.device))
        draw(stem.with_suffix(".png"), ordered, arguments.device)


if __name__ == "__main__":
    main()
