"""The command `check`: what an environment is, what is wrong with it, and whether an agent can learn in it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from relax_rl.settings.config import EnvConfig
from relax_rl.settings.fields import check, setting
from relax_rl.settings.options import parse

if TYPE_CHECKING:
    from relax_rl.runs.inspection import Inspection

__all__ = ["CheckConfig", "check_command"]

_WIDTH, _HEADING = 80, 14


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Say what an environment is, as a run would make it, and what is wrong with it; leaves with 2 if no agent can learn there."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "what everyone sets": "env num_envs steps seed",
        "environment": (
            "env_kwargs wrapper frame_stack drop_keys info_keys action_masks mask_key vectorization bins sticky_actions "
            "life_loss_terminal"
        ),
    }

    env: EnvConfig = field(default_factory=EnvConfig)
    steps: int = setting(2_000, least=1)
    """Random steps over all environments that rewards and speed are told of; fewer where they take more than three seconds."""
    seed: int = setting(0, least=0)
    """Seed of environments and actions."""

    def __post_init__(self) -> None:
        check(self)


def check_command(args: Sequence[str], prog: str) -> int:
    """`check`: make, step, tell; returns 0 for an environment that can be learned in, else 2."""
    config = parse(CheckConfig, args, prog=prog)
    from relax_rl.runs.inspection import inspect_env

    found = inspect_env(config.env, steps=config.steps, seed=config.seed)
    print(_page(config.env.env, found))
    return 2 if found.unusable else 0


def _page(name: str, found: Inspection) -> str:
    """Facts, then faults, in 80 columns."""
    lines = [f"{name} · {'not usable' if found.unusable else 'usable'}"]
    for heading, told in found.facts.items():
        lines += _wrapped(told, f"  {heading:{_HEADING}}", " " * (_HEADING + 2))
    faults = [*([found.unusable] if found.unusable else []), *found.faults]
    lines.append("what is wrong:" if faults else "nothing is wrong with it")
    for fault in faults:
        lines += _wrapped(fault, "  - ", "    ")
    return "\n".join(lines)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=True
    )
