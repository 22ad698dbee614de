"""Write the tables of the documentation that come from the code: `python docs/update_tables.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import result_tables as results
from formulas import typeset

from relax_rl.commands.check import CheckConfig
from relax_rl.commands.evaluate import EvaluateConfig
from relax_rl.commands.export import ExportConfig
from relax_rl.commands.main import COMMANDS
from relax_rl.commands.push import PushConfig
from relax_rl.comparison.config import CompareConfig
from relax_rl.estimators import estimator_table
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.settings import options
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import Setting, settings_of
from relax_rl.settings.synonyms import flag
from relax_rl.variance.measure import VarianceConfig

DOCUMENTS = Path(__file__).parent
ALGORITHMS = DOCUMENTS / "algorithms"
CONFIGS: Mapping[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "variance": VarianceConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "check": CheckConfig,
    "toy": ToyConfig,
    "compare": CompareConfig,
    "vae": VaeConfig,
}
"""The settings of each command."""
_NAMED = re.compile(r"(?<![\w`-])(--[a-z][a-z0-9-]*)")
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "score_function": ("reinforce", "nvil"),
    "control_variates": ("lax", "dlax", "rebar", "relax", "simple-muprop", "muprop", "marginal"),
    "pathwise": (
        *("reparameterized", "rejection", "concrete", "straight-through", "straight-through-gumbel"),
        *("gumbel-rao", "reinmax"),
    ),
    "antithetic": ("arm", "disarm", "arms"),
    "multisample": ("rloo", "vimco", "dreg", "unordered-set", "without-replacement", "double-cv", "rodeo"),
}
"""Estimators of each family, which has a page; `enumerated` is in none, for it estimates nothing."""


def main() -> None:
    """Replace each table by what the code says now."""
    for path, tables in documents().items():
        text = path.read_text(encoding="utf-8")
        for mark, table in tables.items():
            text = replaced(text, mark, table)
        path.write_text(text, encoding="utf-8")


def documents() -> dict[Path, dict[str, str]]:
    """Tables by document and mark, as the code has them now."""
    return {
        DOCUMENTS.parent / "README.md": {"contests": results.contests(), "five minutes": results.five_minutes()},
        DOCUMENTS / "estimators.md": {"estimators": typeset(estimator_table())},
        DOCUMENTS / "choosing.md": {"decision": results.decision()},
        DOCUMENTS / "results.md": {"results": results.index()},
        DOCUMENTS / "reference" / "command_line.md": {"options": command_line()},
        **{ALGORITHMS / f"{name}.md": of_agent for name, of_agent in agents().items()},
        **{
            ALGORITHMS / f"{name}.md": of_family(names) | ({"bounds": results.bounds()} if "dreg" in names else {})
            for name, names in FAMILIES.items()
        },
    }


def agents() -> dict[str, dict[str, str]]:
    """Tables of results by agent."""
    peers, solved, classic = ("SB3 PPO", "SB3 A2C"), ("CartPole-v1", "LunarLander-v3"), ("CartPole-v1", "Acrobot-v1")
    continuous = ("InvertedPendulum-v5", "LunarLanderContinuous-v3", "Hopper-v5", "HalfCheetah-v5")
    both, choices = {"off": "A2C", "sb3-ppo": "SB3 PPO"}, (*classic, "LunarLander-v3")
    return {
        "reinforce": {
            "learning": results.papers_tasks({"REINFORCE, our preset": "REINFORCE", "A2C, our preset": "A2C"}),
            "variance": results.variance((*classic, *continuous[:2]), "reinforce"),
        },
        "a2c": {
            "learning": results.learning(("CartPole-v1", "InvertedPendulum-v5", "LunarLander-v3"), ("A2C", *peers))
        },
        "relax": {
            "learning": results.learning(solved, ("RELAX", "A2C", *peers)),
            "variance": results.variance(choices, "relax, fitted"),
        },
        "lax": {
            "learning": results.against_ppo(continuous, {"on": "LAX", **both}),
            "variance": results.variance(continuous, "lax, fitted"),
        },
        "marginal": {
            "learning": results.against_ppo(choices, {"exact": "marginal", "on": "RELAX", **both}),
            "variance": results.variance(choices, "marginal, fitted"),
        },
    }


def of_family(names: Sequence[str]) -> dict[str, str]:
    """What a page of a family of estimators has of the registry and of the results."""
    found = {"estimators": of(names), "toy": results.toy(names), "autoencoders": results.autoencoders(names)}
    found["decision"] = results.at_equal_evaluations(names)
    return {mark: table for mark, table in found.items() if table.count("\n") > 2}


def replaced(text: str, mark: str, table: str) -> str:
    """A document with another table between two marks."""
    line = f"<!-- {mark} -->\n"
    before, _, after = text.split(line)
    return before + line + table + line + after


def of(names: Iterable[str]) -> str:
    """The rows of these estimators, in this order, under the head of the whole table."""
    head, rule, *rows = typeset(estimator_table()).splitlines()
    found = {row.split("`")[1]: row for row in rows}
    return "\n".join([head, rule, *(found[name] for name in names)]) + "\n"


def command_line() -> str:
    """A section for each command, with a table of options under each heading of its help."""
    found: list[str] = []
    for command, kind in CONFIGS.items():
        summary = COMMANDS[command].summary
        found += [f"\n## {command}\n", f"{summary[0].upper()}{summary[1:]}.\n"]
        for heading, listed in options.sections(kind, settings_of(kind)).items():
            title = f"{command}: {heading}" if heading != "options" else f"{command}: all options"
            found += [f"### {title}\n", "| option | default | meaning |", "|---|---|---|"]
            found += [_row(option, {"preset": "auto"} if command == "train" else {}) for option in listed]
            found.append("")
    return "\n".join(found).replace("\n\n\n", "\n\n")


def _row(option: Setting, given: Mapping[str, Any]) -> str:
    called = option.name.upper() if option.required else flag(option.name)
    told = options.help_of(option)
    choices = [str(choice) for choice in _choices(option.kind)]
    if choices and option.rule.expected is not None:
        told += f" {option.rule.expected.capitalize()}."
    elif choices:
        told += f" One of {', '.join(f'`{choice}`' for choice in choices)}{', or `module:name`' * option.rule.open}."
    return f"| `{called}` | {_default(given.get(option.name, option.default))} | {_in_a_cell(told)} |"


def _choices(kind: Any) -> tuple[Any, ...]:
    """What may be chosen, where a type is one of few choices, or several of them."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((_choices(inner) for inner in get_args(kind) if _choices(inner)), ())


def _default(value: Any) -> str:
    if value is MISSING:
        return "has to be given"
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    words = ("x" if isinstance(value[0], int) else " ").join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{words}`"


def _in_a_cell(text: str) -> str:
    """Help as Markdown in a cell: options as code, signs of Markdown and of formulas as they are."""
    return _NAMED.sub(r"`\1`", text).replace("|", "\\|").replace("*", "\\*").replace("$", "\\$")


if __name__ == "__main__":
    main()
