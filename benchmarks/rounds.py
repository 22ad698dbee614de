"""Who meets in `benchmarks.run_off`, round by round: what a round has found decides who comes to the next."""

from __future__ import annotations

from benchmarks.finalists import (
    FAR,
    FAST,
    FORMER,
    PASSES,
    SMALL,
    SURROGATE,
    UNBOUNDED,
    Round,
    ant,
    double,
    recipe,
    untold,
    walker,
)
from benchmarks.lander_rounds import LANDER_ROUNDS

__all__ = ["ROUNDS"]

ROUNDS: dict[str, Round] = {
    "untold": Round(
        finalists={
            "4": untold(4),
            "4, four passes of 256": untold(4, num_steps="128", minibatch_size="256", epochs="4", **FAST),
            "6": untold(6),
            "6, advantages as they are": untold(6, normalize_advantage="false"),
            "20": untold(20),
        }
    ),
    # 6 is ahead of 4 on the pendulum alone, where rewards far ahead tell little.
    "untold-second": Round(finalists={"4, gamma 0.98": untold(4, gamma="0.98")}),
    # A bound of the divergence, which is ahead on Pendulum.
    "untold-fourth": Round(
        finalists={
            "bound 0.05": recipe("untold", UNBOUNDED | SURROGATE, entropy_coef="0.003"),
            "bound 0.02": recipe("untold", UNBOUNDED | SURROGATE, entropy_coef="0.003", kl_bound="0.02"),
        }
    ),
    **LANDER_ROUNDS,
    "locomotion-halves": Round(
        finalists={
            "V": walker(),
            "V, bound 0.02": walker(kl_bound="0.02"),
            "V, rollouts of 64": walker(num_steps="64"),
            "V, advantages normalised": walker(normalize_advantage="true"),
            "V, unbounded actions": walker(squash=False),
        },
        tasks=("HalfCheetah-v5", "Hopper-v5"),
        steps=500_000,
    ),
    # Rollouts of 64 were ahead on HalfCheetah, and not far behind on Hopper.
    "locomotion-second": Round(
        finalists={
            "V, rollouts of 64, advantages normalised": walker(num_steps="64", normalize_advantage="true"),
            "V, rollouts of 64, gamma 0.98, lambda 0.92": walker(num_steps="64", gamma="0.98", gae_lambda="0.92"),
            "V, rollouts of 64, bound 0.1": walker(num_steps="64", kl_bound="0.1"),
        },
        tasks=("HalfCheetah-v5", "Hopper-v5"),
        steps=500_000,
        preset=False,
    ),
    # What became the preset, with what helped elsewhere: a replay for V, shorter rollouts, longer ones of fewer environments.
    "locomotion-third": Round(
        finalists={
            "V, rollouts of 64, replay of 2": walker(num_steps="64", value_replay="2"),
            "V, rollouts of 64, replay of 6": walker(num_steps="64", value_replay="6"),
            "V, rollouts of 32": walker(num_steps="32"),
            "V, 4 environments": walker(num_envs="4"),
        },
        tasks=("HalfCheetah-v5",),
        steps=500_000,
        preset=False,
    ),
    # PPO's published settings take five times as many steps on each row, and act with less noise.
    "locomotion-fourth": Round(
        finalists={
            "V, 16 passes": walker(num_steps="64", epochs="16"),
            "V, minibatches of 64": walker(num_steps="64", minibatch_size="64"),
            "V, rates 0.0006": walker(num_steps="64", policy_lr="0.0006", value_lr="0.0006"),
            "V, entropy -1": walker(num_steps="64", entropy_target="-1"),
            "V, entropy -1, deviation 0.2": walker(num_steps="64", entropy_target="-1", log_std_init="-1.5"),
            "V, deviation by state": walker(num_steps="64", state_dependent_std="true"),
        },
        tasks=("HalfCheetah-v5",),
        steps=500_000,
        preset=False,
    ),
    # Ant has the preset of the walkers untried; most of what it sees are forces that are 0 but at contacts.
    "ant": Round(
        finalists={
            "V, rollouts of 64": walker(num_steps="64"),
            "V, rollouts of 64, deviations of 0.1 at least": walker(num_steps="64", obs_std_floor="0.1"),
            "V, rollouts of 64, entropy -1": walker(num_steps="64", entropy_target="-1"),
            "V, advantages normalised": walker(normalize_advantage="true"),
            "V, unbounded actions": walker(num_steps="64", squash=False),
            "passes": ant(),
        },
        tasks=("Ant-v5",),
        steps=500_000,
        preset=False,
    ),
    # PPO's passes were ahead, and both larger deviations and unbounded actions of the bounded recipe.
    "ant-second": Round(
        finalists={
            "passes, deviations of 0.1 at least": ant(obs_std_floor="0.1"),
            "passes, rollouts of 128": ant(num_steps="128"),
            "V, unbounded actions, deviations of 0.1 at least": walker(
                num_steps="64", squash=False, obs_std_floor="0.1"
            ),
        },
        tasks=("Ant-v5",),
        steps=500_000,
        preset=False,
    ),
    # The preset's runs differ widely, and their noise is gone early: a deviation of 0.03 at the end.
    "ant-third": Round(
        finalists={
            "passes, rollouts of 128": ant(num_steps="128"),
            "passes, rollouts of 128, deviation 1": ant(num_steps="128", log_std_init="0"),
            "passes, rollouts of 128, entropy -0.5": ant(
                num_steps="128", entropy_target="-0.5", entropy_schedule="constant"
            ),
            "passes, rollouts of 128, advantages normalised": ant(num_steps="128", normalize_advantage="true"),
            "passes, as PPO's defaults": ant(
                num_steps="256", log_std_init="0", normalize_advantage="true", lr_schedule="constant"
            ),
        },
        tasks=("Ant-v5",),
        steps=500_000,
        seeds=3,
        preset=False,
    ),
    # Far from ends of episodes, and with a discount that sees all of them: the recipes of the other bodies, for Swimmer.
    "swimmer": Round(
        finalists={
            "V": walker(num_steps="64", gamma="0.9999"),
            "V, rollouts of 128, advantages normalised": walker(
                num_steps="128", gamma="0.9999", normalize_advantage="true"
            ),
            "passes, rollouts of 128": ant(num_steps="128", gamma="0.9999"),
        },
        tasks=("Swimmer-v5",),
        steps=500_000,
    ),
    "double-pendulum": Round(
        finalists={
            "V": walker(),
            "V, small networks": walker(hidden="64x64", policy_lr="0.001", value_lr="0.001"),
            "passes, rollouts of 64": recipe("locomotion", PASSES, num_steps="64", gamma="0.99"),
            "passes, rollouts of 64, gamma 0.98": recipe("locomotion", PASSES, num_steps="64", gamma="0.98"),
        },
        tasks=("InvertedDoublePendulum-v5",),
        steps=500_000,
    ),
    # The one that was ahead and the preset that it would replace, as long as the contest.
    "double-pendulum-length": Round(
        finalists={"V, small networks": walker(hidden="64x64", policy_lr="0.001", value_lr="0.001")},
        tasks=("InvertedDoublePendulum-v5",),
        steps=1_000_000,
    ),
    # All runs of the preset stand upright by then, but a few starts in a hundred fall: less noise, falls of the near future alone.
    "double-pendulum-steady": Round(
        finalists={
            "preset, deviation 0.4": double(log_std_init="-1"),
            "preset, gamma 0.97": double(gamma="0.97"),
            "preset, advantages normalised": double(normalize_advantage="true"),
            "preset, rates 0.001": double(**FAST),
            "V, small networks, entropy -1.5": walker(
                hidden="64x64", entropy_target="-1.5", policy_lr="0.001", value_lr="0.001"
            ),
            "V, small networks, entropy -1.5, gamma 0.97": walker(
                hidden="64x64", entropy_target="-1.5", gamma="0.97", policy_lr="0.001", value_lr="0.001"
            ),
        },
        tasks=("InvertedDoublePendulum-v5",),
        steps=1_000_000,
        preset=False,
    ),
    "biped": Round(
        finalists={
            "V, rollouts of 64": walker(num_steps="64"),
            "V, gamma 0.995": walker(gamma="0.995"),
            "passes of the lander": recipe("locomotion", FORMER, log_std_init="-0.5"),
        },
        tasks=("BipedalWalker-v3",),
        steps=1_000_000,
    ),
    "pendulum": Round(
        finalists={
            "passes": recipe("classic-continuous", PASSES, gamma="0.9"),
            "passes, rollouts of 64": recipe("classic-continuous", PASSES, gamma="0.9", num_steps="64"),
            "bound 0.05": recipe("classic-continuous", SMALL, gamma="0.9"),
            "bound 0.1": recipe("classic-continuous", SMALL, gamma="0.9", kl_bound="0.1"),
            "bound 0.05, gamma 0.97": recipe("classic-continuous", SMALL, gamma="0.97"),
            "bound 0.05, rollouts of 32": recipe("classic-continuous", SMALL, gamma="0.9", num_steps="32"),
            "bound 0.05, 256-256": recipe(
                "classic-continuous", SMALL, gamma="0.9", hidden="256x256", policy_lr="0.0003", value_lr="0.0003"
            ),
        },
        tasks=("Pendulum-v1",),
        steps=100_000,
        peers=("sb3-ppo",),
    ),
    # The one that was ahead, and what `auto` would take with its settings.
    "pendulum-second": Round(
        finalists={
            "bound 0.05": recipe("classic-continuous", SMALL, gamma="0.9"),
            "bound 0.05 as LAX": recipe("classic-continuous", SMALL, gamma="0.9", estimator="lax", **SURROGATE),
        },
        tasks=("Pendulum-v1",),
        steps=100_000,
        seeds=6,
        preset=False,
    ),
    "inverted-pendulum": Round(
        finalists={
            "bound 0.05": recipe("classic-continuous", SMALL, gamma="0.98"),
            "bound 0.1": recipe("classic-continuous", SMALL, gamma="0.98", kl_bound="0.1"),
            "bound 0.1, rollouts of 32": recipe(
                "classic-continuous", SMALL, gamma="0.98", kl_bound="0.1", num_steps="32"
            ),
            "bound 0.1, unbounded actions": recipe("classic-continuous", UNBOUNDED, gamma="0.98", kl_bound="0.1"),
            "passes": recipe("classic-continuous", PASSES, gamma="0.98"),
            "passes, rollouts of 64": recipe("classic-continuous", PASSES, gamma="0.98", num_steps="64"),
        },
        tasks=("InvertedPendulum-v5",),
        steps=150_000,
        peers=("sb3-ppo",),
    ),
    "mountain-car": Round(
        finalists={
            "passes": recipe("classic-continuous", PASSES, gamma="0.999"),
            "bound 0.05": recipe("classic-continuous", SMALL, **FAR),
            "bound 0.1": recipe("classic-continuous", SMALL, kl_bound="0.1", **FAR),
            "bound 0.05, rollouts of 32": recipe("classic-continuous", SMALL, num_steps="32", **FAR),
            "bound 0.05, gamma 0.9999": recipe("classic-continuous", SMALL, **{**FAR, "gamma": "0.9999"}),
        },
        tasks=("MountainCarContinuous-v0",),
        steps=100_000,
        peers=("sb3-ppo",),
    ),
    # PPO is at the goal in its first episodes: its one environment wastes none, and its noise has memory.
    "mountain-car-second": Round(
        finalists={
            "passes, 1 environment": recipe("classic-continuous", PASSES, gamma="0.999", num_envs="1"),
            "passes, 1 environment, deviation e": recipe(
                "classic-continuous", PASSES, gamma="0.999", num_envs="1", log_std_init="1"
            ),
            "passes, deviation e": recipe("classic-continuous", PASSES, gamma="0.999", log_std_init="1"),
            "passes, rollouts of 64": recipe("classic-continuous", PASSES, gamma="0.999", num_steps="64"),
            "bound 0.1, 1 environment": recipe(
                "classic-continuous", SMALL, kl_bound="0.1", num_envs="1", num_steps="256", **FAR
            ),
            "passes as LAX": recipe("classic-continuous", PASSES, gamma="0.999", estimator="lax", **SURROGATE),
        },
        tasks=("MountainCarContinuous-v0",),
        steps=100_000,
        preset=False,
    ),
}
"""By name; seeds of all rounds begin at `FIRST_SEED`."""
