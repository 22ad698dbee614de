"""Try the same settings on every estimator, to choose the presets: equal candidates, equal seeds, equal steps.

    python -m benchmarks.tune --tasks CartPole-v1 --jobs 2

The candidates of an environment stand in `CANDIDATES`. Each is trained for `Study.steps` with seeds 100, 101, ..., which
no other benchmark uses, in one `train_agent.py compare` command, and leaves its report in `results/candidates/<study>/`;
`results/candidates.md` sums them up. A preset takes the candidate that is best over the estimators. Where a run takes
long, A2C alone is asked, and RELAX takes over what suits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.matches import Match, main_of, write_summary
from benchmarks.tasks import TASKS, Task

__all__ = ["CANDIDATES", "MATCHES", "Study", "main"]

GROUP = "candidates"
FIRST_SEED = 100


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is tried on one environment."""

    estimators: tuple[str, ...]
    steps: int
    seeds: int
    base: dict[str, Any]
    """Settings of all candidates."""
    candidates: tuple[dict[str, Any], ...]
    """What each candidate changes in the base."""
    second_round: tuple[dict[str, Any], ...] = ()
    """Candidates that the first round could not tell apart, and that get as many seeds again."""
    task: Task | None = None
    """What is asked, where that is not what `TASKS` says of the environment the study is named after."""


NORMALIZED = {"normalize_obs": True, "normalize_reward": True, "value_lr": 3e-3, "surrogate_lr": 3e-3}
CANDIDATES: dict[str, Study] = {
    "CartPole-v1": Study(
        estimators=("relax", "a2c"),
        steps=150_000,
        seeds=5,
        base={"num_envs": 8, "num_steps": 5, **NORMALIZED},
        candidates=(
            {},
            {"gamma": 0.98, "gae_lambda": 0.9},
            {"gamma": 0.98, "gae_lambda": 0.9, "lr_schedule": "linear"},
            {"gamma": 0.98, "gae_lambda": 0.8},
            {"gamma": 0.98, "gae_lambda": 0.9, "policy_lr": 2e-3},
            {"gamma": 0.98, "gae_lambda": 0.9, "surrogate_steps": 4},
            {"gamma": 0.98, "gae_lambda": 0.9, "normalize_obs": False},
            {"gamma": 0.98, "gae_lambda": 0.9, "normalize_reward": False},
        ),
    ),
    "InvertedPendulum-v5": Study(
        estimators=("lax", "a2c"),
        steps=150_000,
        seeds=5,
        base={"num_envs": 8, **NORMALIZED},
        candidates=(
            {"num_steps": 5},
            {"num_steps": 5, "gamma": 0.98, "gae_lambda": 0.9},
            {"num_steps": 5, "policy_lr": 2e-3},
            {"num_steps": 5, "surrogate_steps": 4},
            {"num_steps": 16, "policy_lr": 2e-3},
        ),
    ),
    "LunarLander-v3": Study(
        estimators=("relax", "a2c"),
        steps=1_000_000,
        seeds=5,
        base={
            **NORMALIZED,
            "num_envs": 16,
            "num_steps": 32,
            "gamma": 0.995,
            "gae_lambda": 0.98,
            "entropy_coef": 0.01,
            "policy_lr": 2e-3,
            "value_lr": 1e-2,
            "lr_schedule": "linear",
        },
        candidates=(
            {},
            {"policy_lr": 4e-3},
            {"gamma": 0.999},
            {"gamma": 0.99},
            {"entropy_coef": 0.02, "entropy_schedule": "linear"},
            {"policy_lr": 4e-3, "entropy_coef": 0.02, "entropy_schedule": "linear"},
            {"gamma": 0.999, "entropy_coef": 0.003, "value_lr": 3e-3},
        ),
        second_round=(
            {"gamma": 0.99},
            {"policy_lr": 4e-3},
            {"entropy_coef": 0.02, "entropy_schedule": "linear"},
        ),
    ),
    "HalfCheetah-v5-7-bins": Study(
        task=Task(env="HalfCheetah-v5", budget=1_000_000, threshold=4800.0, within=1_000_000, stop_when_reached=False),
        estimators=("a2c",),
        steps=1_000_000,
        seeds=2,
        base={
            **NORMALIZED,
            "bins": 7,
            "num_envs": 8,
            "num_steps": 64,
            "minibatch_size": 64,
            "epochs": 10,
            "clip_range": 0.2,
            "gamma": 0.98,
            "gae_lambda": 0.92,
            "policy_lr": 3e-4,
            "value_lr": 3e-4,
            "surrogate_lr": 1e-3,
            "surrogate_scale": "fitted",
            "log_std_init": -1.0,
            "lr_schedule": "linear",
        },
        candidates=(
            {},
            {"entropy_coef": 0.003},
            {"entropy_coef": 0.01},
            {"minibatch_size": 256},
            {"num_steps": 256, "minibatch_size": 256},
            {"policy_lr": 1e-4},
            {"policy_lr": 1e-4, "lr_schedule": "constant"},
            {"ordinal_std_init": 0.4},
        ),
        second_round=({}, {"policy_lr": 1e-4}, {"ordinal_std_init": 0.4}),
    ),
}


def match_of(name: str, candidates: Sequence[dict[str, Any]], first_seed: int) -> Match:
    """Every candidate with every estimator, as one comparison; the labels are those of `label_of`."""
    study = CANDIDATES[name]
    task = study.task or TASKS[name]
    contestants: dict[str, str] = {}
    for candidate in candidates:
        for estimator in study.estimators:
            # What only a surrogate reads makes no difference to A2C.
            own = {k: v for k, v in candidate.items() if estimator != "a2c" or not k.startswith("surrogate")}
            settings = ",".join(f"{name}={value}" for name, value in own.items())
            contestants[label_of(estimator, own)] = estimator + (f":{settings}" if settings else "")
    return Match(
        env=task.env,
        steps=study.steps,
        contestants=tuple(f"{label}={text}" for label, text in contestants.items()),
        settings={"preset": "none", **{name: str(value) for name, value in study.base.items()}},
        seeds=study.seeds,
        first_seed=first_seed,
        threshold=task.threshold,
        stop_when_solved=task.stop_when_reached,
    )


def label_of(estimator: str, settings: dict[str, Any]) -> str:
    """Such as `relax gamma 0.98 gae_lambda 0.9`."""
    return " ".join([estimator, *(f"{name} {value}" for name, value in settings.items())])


def rounds(name: str) -> dict[str, Match]:
    """The comparisons of a study, on seeds of their own, by the names of their folders."""
    study = CANDIDATES[name]
    found = {name: match_of(name, study.candidates, FIRST_SEED)}
    if study.second_round:
        found[f"{name}-second-round"] = match_of(name, study.second_round, FIRST_SEED + study.seeds)
    return found


MATCHES = {name: match for study in CANDIDATES for name, match in rounds(study).items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/candidates.md` from the comparisons that are there."""
    write_summary("Candidates for presets", GROUP, MATCHES, after=_settings)


def _settings(name: str, found: dict[str, Any]) -> list[str]:
    return [f"All with {', '.join(f'{key} {value}' for key, value in MATCHES[name].settings.items())}.", ""]


if __name__ == "__main__":
    main()
