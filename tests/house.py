"""`python -m tests.house` draws the house in `docs/contributing.md`: its floors, and an observation's way through it."""

from __future__ import annotations

import ast
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import relax_rl
from relax_rl import RELAX, make_envs

__all__ = [
    "DOCUMENT",
    "FLOOR",
    "MODULES",
    "PACKAGE",
    "PICTURE",
    "PLACES",
    "ROOT",
    "arrows",
    "imports",
    "observation_way",
    "picture",
    "room",
    "rooms_drawn",
    "way_drawn",
]

ROOT = Path(relax_rl.__file__).parent.parent
PACKAGE = ROOT / "relax_rl"
DOCUMENT = ROOT / "docs" / "contributing.md"
PICTURE = DOCUMENT.parent / "figures" / "rooms.svg"
MARKS = {"rooms": "<!-- rooms -->\n", "way": "<!-- way -->\n"}

# Floors of the house, lowest first: a room imports only what stands below it, or beside it in the same place.
FLOORS = (
    "distributions",
    "estimators",
    "errors settings",
    "compute",
    "networks",
    "critics",
    "backends",
    "envs",
    "agents",
    "runs",
    "variance",
    "experiments",
    "comparison",
    "commands",
    "cli",
    "__main__ __init__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ASIDE = {"agents/acting.py", "backends/batches.py", "backends/checks.py"}
"""Where an observation becomes an action, is copied, and is looked at: no part of its way to the optimiser."""
END = "compute/optimizers.py"
WIDTH = 4
"""Of CartPole's observations; nothing else in this run is as wide but the weights of the first layers."""
HIDDEN = (32,)

PLACES: dict[str, tuple[float, int]] = {
    "cli": (2, 9),
    "commands": (2, 8),
    "experiments": (1, 7),
    "variance": (2, 7),
    "comparison": (3, 7),
    "runs": (2, 6),
    "agents": (2, 5),
    "envs": (1, 4),
    "backends": (1, 3),
    "critics": (2, 3),
    "networks": (2, 2),
    "compute": (0, 1),
    "settings": (1.4, 1),
    "estimators": (3, 1),
    "errors": (1, 0),
    "distributions": (2.5, 0),
}
"""Column and row of each room in the picture: rows from the ground, so that arrows lead down."""
BOX = (108, 28)
"""Width and height."""
ROLES = {
    "envs.py": "steps the environments",
    "agents/rollouts.py": "T steps of every environment",
    "networks/spaces.py": "a space's values as one row each",
    "agents/agent.py": "owns the learner",
    "agents/networks.py": "policy, V and surrogate",
    "networks/torsos.py": "features",
    "agents/batch.py": "flat rows, advantages, returns",
    "agents/learner.py": "takes the steps",
    "agents/gradients.py": "parameters and a batch to gradients",
    "agents/estimates.py": "the estimate, a call into the core",
    "critics/surrogate.py": "c(s, a), with its slope",
    END: "theta, phi and V move",
}


def room(module: str) -> str:
    """The module, or the folder, directly under the package."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, and for its type hints too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "relax_rl":
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def observation_way() -> list[str]:
    """Files of the package with a function that is handed observations, in the order of the way.

    From the return of `envs.step` to the step of the optimisers: a rollout and an update of RELAX on CartPole, without
    the acting in between.
    """
    found: dict[str, None] = {}
    with make_envs("CartPole-v1", num_envs=8, seed=0) as envs:
        spaces = envs.single_observation_space, envs.single_action_space
        agent = RELAX(*spaces, num_steps=5, hidden=HIDDEN, surrogate_hidden=HIDDEN, compile="off")
        collector = agent.collector(envs)
        agent.collect(collector)

        def look(frame: FrameType, event: str, result: Any) -> None:
            name = file_of(frame)
            if name is None or END in found or aside(frame) or (not found and name != "envs.py"):
                return
            if name == END and frame.f_code.co_name == "step":
                found[END] = None
            elif (event == "call" and any(map(holds, frame.f_locals.values()))) or (
                event == "return" and holds(result)
            ):
                found[name] = None

        sys.setprofile(look)
        try:
            agent.update(agent.collect(collector))
        finally:
            sys.setprofile(None)
    return list(found)


def file_of(frame: FrameType) -> str | None:
    """The frame's file, relative to the package; None outside it."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None


def aside(frame: FrameType | None) -> bool:
    """Whether this is such a place, or called from one."""
    while frame is not None:
        if file_of(frame) in ASIDE:
            return True
        frame = frame.f_back
    return False


def holds(value: Any, depth: int = 2) -> bool:
    """Whether a value is observations, or a record or sequence with some in it."""
    if isinstance(value, (Tensor := torch.Tensor, np.ndarray)):
        is_float = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
        return is_float and value.ndim > 1 and value.shape[-1] == WIDTH and value.shape[0] != HIDDEN[0]
    if depth and is_dataclass(value) and not isinstance(value, type):
        return any(holds(getattr(value, field.name, None), depth - 1) for field in fields(value))
    return bool(depth) and isinstance(value, (list, tuple)) and any(holds(each, depth - 1) for each in value)


def way_drawn() -> str:
    """The way as a list in its order."""
    return "".join(f"{k}. `{name}`: {ROLES[name]}\n" for k, name in enumerate(observation_way(), 1))


def arrows() -> list[tuple[str, str]]:
    """From each room, the highest first, to those that it imports and that nothing between them does."""
    uses: dict[str, set[str]] = {name: set() for name in FLOOR if not name.startswith("__")}
    for name, path in MODULES.items():
        if room(name) in uses:
            uses[room(name)] |= {room(other) for other in imports(path)} & (uses.keys() - {room(name)})
    reached: dict[str, set[str]] = {}
    for name in sorted(uses, key=FLOOR.__getitem__):
        reached[name] = uses[name].union(*(reached[other] for other in uses[name]))
    return [
        (name, other)
        for name in sorted(uses, key=FLOOR.__getitem__, reverse=True)
        for other in sorted(uses[name])
        if not any(other in reached[between] for between in uses[name])
    ]


def rooms_drawn() -> str:
    """The picture of the rooms, and in words what it shows."""
    used: dict[str, list[str]] = {}
    for name, other in arrows():
        used.setdefault(name, []).append(f"`{other}`")
    lines = [f"- `{name}` uses {', '.join(others)}" for name, others in used.items()]
    picture = f"![The rooms as boxes, with an arrow from each to those it uses; the list below says the same](figures/{PICTURE.name})"
    opening = ["<details markdown>", "<summary>The same in words</summary>", ""]
    return "\n".join([picture, "", *opening, *lines, "", "</details>", ""])


def picture() -> str:
    """The rooms as SVG: black on a ground of its own, so that it can be read on dark pages too."""
    boxes, lines = [], []
    for name, (x, y) in ((name, place(name)) for name in PLACES):
        boxes.append(f'<rect x="{x - BOX[0] // 2}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="5"/>')
        boxes.append(f'<text x="{x}" y="{y + 19}">{name}</text>')
    for name, other in arrows():
        (x, y), (to_x, to_y) = place(name), place(other)
        lines.append(f'<path d="M{x},{y + BOX[1]}L{to_x},{to_y - 2}"/>')
    width, height = (side + 20 for side in (max(place(name)[k] for name in PLACES) + BOX[k] // (2 - k) for k in (0, 1)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
            "<title>What each room of the package uses</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0L8,4L0,8Z" fill="#444"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            '<g stroke="#444" stroke-width="1.3" fill="none" marker-end="url(#head)">',
            *lines,
            "</g>",
            '<g font-family="sans-serif" font-size="14" text-anchor="middle" stroke-width="0">',
            *(box.replace("/>", ' fill="#e8eef7" stroke="#3b6fb6" stroke-width="1"/>') for box in boxes),
            "</g>",
            "</svg>",
            "",
        ]
    )


def place(name: str) -> tuple[int, int]:
    """Middle and top of a box."""
    column, row = PLACES[name]
    return round(80 + 130 * column), 20 + 62 * (9 - row)


def main() -> None:
    """Replace the picture, and the lists in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, drawing in (("rooms", rooms_drawn()), ("way", way_drawn())):
        before, _, after = text.split(MARKS[name])
        text = f"{before}{MARKS[name]}{drawing}{MARKS[name]}{after}"
    DOCUMENT.write_text(text, encoding="utf-8")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
