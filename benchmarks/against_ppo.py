"""The surrogate on and off, with the same code and settings, and Stable-Baselines3's PPO beside both.

    python -m benchmarks.against_ppo                               # every task; what is done already is kept
    python -m benchmarks.against_ppo --tasks CartPole-v1 --seeds 5

Every task is one `train_agent.py compare` command. Ours take the preset of the task; without a surrogate (`off`) that is
A2C, or PPO's gradient with our V where the preset passes over a rollout several times, and with one (`on`) it differs in
nothing else. `LunarLander-v3-further-seeds` repeats these two on seeds that had no part in what made them worth
repeating, `CartPole-v1-zoo-settings` gives ours what rl-baselines3-zoo tuned for PPO, and two of HalfCheetah with 7 bins
give ours what its preset was before, and another candidate for it. The comparisons work in
`runs/benchmarks/against_ppo/`, can be stopped and gone on with, and leave their report, numbers and figures in
`results/against_ppo/<task>/`; `results/against_ppo.md` sums them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.matches import Match, main_of, read_result, section
from benchmarks.tasks import RESULTS, write_text
from relax_rl.settings.presets import preset_config

__all__ = ["MATCHES", "main"]

GROUP = "against_ppo"
PPO = "sb3-ppo"
FIT_ROWS = 100_000
"""On which each surrogate is fitted at least before the gradient's variance is measured."""


def _match(env: str, steps: int, *, seeds: int = 10, on: str = "relax", exact: bool = False) -> Match:
    contestants = ("off=a2c", f"on={on}", *(("exact=marginal",) if exact else ()))
    preset = preset_config(env.partition(",")[0])
    rows = preset.env.num_envs * preset.agent.num_steps
    return Match(
        env=env,
        steps=steps,
        contestants=contestants,
        peers=(PPO,),
        seeds=seeds,
        variance_of="off",
        fit_batches=max(300, FIT_ROWS // rows),
    )


MATCHES: dict[str, Match] = {
    "CartPole-v1": _match("CartPole-v1", 100_000, exact=True),
    "Acrobot-v1": replace(_match("Acrobot-v1", 100_000, exact=True), fit_batches=1000),
    "InvertedPendulum-v5": _match("InvertedPendulum-v5", 150_000, on="lax"),
    "LunarLander-v3": _match("LunarLander-v3", 500_000, exact=True),
    "LunarLander-v3-further-seeds": replace(
        _match("LunarLander-v3", 500_000), first_seed=10, peers=(), variance_of=None
    ),
    "LunarLanderContinuous-v3": _match("LunarLanderContinuous-v3", 500_000, on="lax"),
    "HalfCheetah-v5": _match("HalfCheetah-v5", 1_000_000, on="lax", seeds=5),
    "Hopper-v5": _match("Hopper-v5", 1_000_000, on="lax", seeds=5),
    "HalfCheetah-v5-7-bins": _match("HalfCheetah-v5,bins=7", 1_000_000, seeds=5),
    "HalfCheetah-v5-7-bins-first-settings": replace(
        _match("HalfCheetah-v5,bins=7", 1_000_000, seeds=5), settings={"ordinal_std_init": "inf"}
    ),
    "HalfCheetah-v5-7-bins-lower-rate": replace(
        _match("HalfCheetah-v5,bins=7", 1_000_000, seeds=5), settings={"ordinal_std_init": "inf", "policy_lr": "1e-4"}
    ),
    "CartPole-v1-zoo-settings": replace(
        _match("CartPole-v1", 100_000),
        commit="807239f",
        fit_batches=300,
        contestants=("off=a2c", "last=relax", "on=relax:surrogate_replay=4", "marginal=marginal:surrogate_replay=4"),
        settings={
            "value_replay": "0",
            "num_envs": "8",
            "num_steps": "32",
            "minibatch_size": "256",
            "epochs": "20",
            "clip_range": "0.2",
            "gamma": "0.98",
            "gae_lambda": "0.8",
            "policy_lr": "1e-3",
            "value_lr": "1e-3",
            "surrogate_lr": "3e-3",
            "lr_schedule": "linear",
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/against_ppo.md` from the comparisons that are there."""
    text = [
        "# With and without surrogate, and Stable-Baselines3's PPO",
        "",
        "`off` is A2C, in PPO's form where the preset passes over a rollout several times; `on` is RELAX or LAX with the same",
        "settings; `exact` sums the surrogate over the actions; `sb3-ppo` has rl-baselines3-zoo's settings. Steps and seconds",
        "to the threshold are medians over runs, those that did not reach it beyond all others; the final score is the",
        "interquartile mean of the last 100 episodes' mean return. Gradient variance: the fitted surrogate's to A2C's at",
        "agents frozen early, midway and late, `off`'s first run. `python -m benchmarks.against_ppo` writes this file.",
        "",
    ]
    for name in MATCHES:
        found = read_result(GROUP, name)
        if found is not None:
            text += _of_task(name, found)
    write_text(RESULTS / f"{GROUP}.md", "\n".join(text))


def _of_task(name: str, found: dict[str, Any]) -> list[str]:
    ((_, task),) = found["environments"].items()
    lines = section(name, GROUP, found)
    improvement = next((x for x in task["improvement"] if {x["x"], x["y"]} == {"off", "on"}), None)
    if improvement is not None:
        on = improvement if improvement["x"] == "on" else _turned(improvement)
        lines += ["", f"P(on > off) = {on['value']:.2f} [{on['low']:.2f}, {on['high']:.2f}] by the final score."]
    ((_, stages),) = (found.get("variance") or {"": {}}).items()
    ratios = {stage: _fitted(result["applied"]) for stage, result in stages.items()}
    if ratios:
        lines += [
            "",
            "Gradient variance: " + ", ".join(f"{stage} {ratio:.2f}" for stage, ratio in ratios.items()) + ".",
        ]
    return [*lines, ""]


def _turned(improvement: dict[str, Any]) -> dict[str, float]:
    return {"value": 1 - improvement["value"], "low": 1 - improvement["high"], "high": 1 - improvement["low"]}


def _fitted(applied: dict[str, Any]) -> float:
    """The ratio to A2C's variance of RELAX or LAX, trained at the frozen agent."""
    name = next(name for name in ("relax, fitted", "lax, fitted") if name in applied)
    ratio: float = applied[name]["ratio"]["value"]
    return ratio


if __name__ == "__main__":
    main()
