"""The tables and the figure of `benchmarks.estimators`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["draw", "section"]

Entry = dict[str, Any]


def section(result: dict[str, Any], asked: dict[str, float]) -> str:
    """The Markdown section of one model."""
    ways = by_way(result)
    columns = ["estimator", "ms", "times REINFORCE", "without phi", "memory, KiB"]
    has_compiled, has_peers = bool(ways["compiled"]), bool(ways["storchastic"])
    columns += ["compiled, ms", "times REINFORCE eager", "times REINFORCE compiled"] if has_compiled else []
    columns += ["Storchastic, ms", "times ours", "its memory, KiB"] if has_peers else []
    about = result["machine"]
    others = f"Storchastic {about['storchastic'] or 'not installed'}"
    load = (
        f"{about['cores']} cores, torch {about['torch']}, {others}, load average before the run {about['load_before']}"
    )
    lines = [f"## {result['model']}", "", f"{result['about']}. {result['rounds']} rounds; {load}.", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, entry in sorted(ways["eager"].items(), key=lambda item: float(item[1]["milliseconds"]["median"])):
        without = ways["without phi"].get(name)
        cells = [name, f"{median(entry):.3g}", ratio(entry), ratio(without), f"{entry['peak_kib']:,.0f}"]
        if has_compiled:
            compiled = ways["compiled"].get(name)
            shown = "" if compiled is None else f"{median(compiled):.3g}"
            cells += [shown, ratio(compiled), ratio(compiled, "ratio_to_compiled")]
        if has_peers:
            cells += peer_cells(entry, ways["storchastic"].get(name))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *notes(result)]
    if result["model"].startswith("policy"):
        lines += ["", asked_line(ways, asked)]
    return "\n".join([*lines, ""])


def by_way(result: dict[str, Any]) -> dict[str, dict[str, Entry]]:
    """way -> name -> entry."""
    ways: dict[str, dict[str, Entry]] = {way: {} for way in ("eager", "without phi", "compiled", "storchastic")}
    for entry in result["contestants"]:
        ways[entry["way"]][entry["name"]] = entry
    return ways


def median(entry: Entry, key: str = "milliseconds") -> float:
    """The median over rounds."""
    return float(entry[key]["median"])


def ratio(entry: Entry | None, key: str = "ratio") -> str:
    """A ratio and its range, or nothing where it was not measured."""
    if entry is None:
        return ""
    found = entry[key]
    return f"{found['median']:.2f} [{found['lowest']:.2f}, {found['highest']:.2f}]"


def peer_cells(own: Entry, peer: Entry | None) -> list[str]:
    """Storchastic's time, its ratio to ours round by round, and its memory."""
    if peer is None:
        return ["", "", ""]
    pairs = zip(peer["milliseconds"]["rounds"], own["milliseconds"]["rounds"], strict=True)
    ratios = sorted(there / here for there, here in pairs)
    spread = f"{ratios[len(ratios) // 2]:.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
    return [f"{median(peer):.3g}", spread, f"{peer['peak_kib']:,.0f}"]


def notes(result: dict[str, Any]) -> list[str]:
    """Other references, and what is not in the table."""
    lines = [f"`{name}` is divided by `{reference}`." for name, reference in result["references"].items()]
    reasons: dict[str, list[str]] = {}
    for name, reason in result["left_out"].items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    lines += [f"Not here, {reason}: {', '.join(names)}." for reason, names in reasons.items()]
    return [" ".join(lines)] if lines else []


def asked_line(ways: dict[str, dict[str, Entry]], asked: dict[str, float]) -> str:
    """What was asked of RELAX, and what was found."""
    found = []
    for name in ("relax", "relax, closed form", "relax, coupled", "relax, coupled, closed form"):
        parts = [f"eager {median(ways['eager'][name], 'ratio'):.2f}"]
        parts += [f"without phi {median(ways['without phi'][name], 'ratio'):.2f}"]
        if name in ways["compiled"]:
            compiled = ways["compiled"][name]
            to_eager, to_compiled = median(compiled, "ratio"), median(compiled, "ratio_to_compiled")
            parts += [f"compiled {to_eager:.2f} times eager and {to_compiled:.2f} times compiled REINFORCE"]
        found.append(f"`{name}`: {', '.join(parts)}")
    return (
        f"Asked of RELAX: at most {asked['eager']:g} times REINFORCE eager, at most {asked['compiled']:g} times under "
        f"`torch.compile`. Found: {'; '.join(found)}."
    )


_COLORS = {"eager": "#3b6ea5", "without phi": "#a9c4e0", "compiled": "#d98f3d", "storchastic": "#8a8a8a"}
_LABELS = {
    "eager": "eager",
    "without phi": "eager, without the variance's backward pass",
    "compiled": "torch.compile, whole update",
    "storchastic": "Storchastic",
}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of the ratio to eager REINFORCE, a panel for each model."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    counts = [len(by_way(result)["eager"]) for result in results]
    size = (5.6 * len(results), 0.34 * max(counts) + 2.6)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result)
    handles = [Rectangle((0, 0), 1, 1, color=_COLORS[way]) for way in _COLORS]
    figure.legend(handles, _LABELS.values(), loc="outside lower center", ncols=len(_LABELS), frameon=False)
    write_bytes_atomic(path, png(figure))


def _panel(axes: Any, result: dict[str, Any]) -> None:
    ways = by_way(result)
    names = sorted(ways["eager"], key=lambda name: -median(ways["eager"][name], "ratio"))
    height = 0.21
    for place, name in enumerate(names):
        present = [way for way in _COLORS if name in ways[way]]
        for k, way in enumerate(present):
            entry = ways[way][name]["ratio"]
            at = place + (k - (len(present) - 1) / 2) * height
            error = [[entry["median"] - entry["lowest"]], [entry["highest"] - entry["median"]]]
            axes.barh(at, entry["median"], height, xerr=error, color=_COLORS[way], ecolor="0.35", error_kw={"lw": 0.7})
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.axvline(1.0, color="0.3", lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_xlim(0.4, 30.0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel("time of one gradient / eager REINFORCE's")
    axes.set_title(result["model"], fontsize=10.5)
    axes.grid(axis="x", alpha=0.25)
