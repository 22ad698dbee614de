"""Who meets in `benchmarks.run_off`, round by round: what a round has found decides who comes to the next."""

from __future__ import annotations

from benchmarks.finalists import (
    BOUNDED,
    CENTRED,
    FAR,
    FAST,
    PASSES,
    SMALL,
    SURROGATE,
    UNBOUNDED,
    Round,
    early,
    former,
    lander,
    recipe,
    untold,
    walker,
)

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
    "lander-halves": Round(
        finalists={
            "V 5": lander(5),
            "V 5, bound 0.01": lander(5, kl_bound="0.01"),
            "V 5, rollouts of 64": lander(5, num_steps="64"),
            "V 5, rollouts of 64, replay": lander(5, num_steps="64", value_replay="2"),
            "V 5, rates 0.001": lander(5, **FAST),
            "V 5, 64-64, rates 0.001": lander(5, hidden="64x64", **FAST),
            "V 5, policy normalised too": lander(5, layer_norm="true"),
            "V 5, advantages normalised": lander(5, normalize_advantage="true"),
            "V 5, entropy 0.01": lander(5, entropy_coef="0.01"),
            "V 5, gamma 0.995, lambda 0.95": lander(5, gamma="0.995", gae_lambda="0.95"),
            "V 5, squared error": lander(5, critic_loss="mse"),
            "q 19": lander(19, "q"),
            "q 5, w 0.3": lander(5, "q", residual_weight="0.3"),
        },
        steps=250_000,
    ),
    # By squared error V 5 was ahead, and from normalised advantages it learned most early on.
    "lander-second": Round(
        finalists={
            "squared error, advantages normalised": early(),
            "squared error, advantages scaled": lander(5, critic_loss="mse", scale_advantage="true"),
            "advantages scaled": lander(5, scale_advantage="true"),
            "squared error, critic not normalised": lander(5, critic_loss="mse", critic_layer_norm="off"),
            "squared error, 16 passes": lander(5, critic_loss="mse", epochs="16"),
            "squared error, minibatches of 64": lander(5, critic_loss="mse", minibatch_size="64"),
            "squared error, 64-64, rates 0.001": lander(5, critic_loss="mse", hidden="64x64", **FAST),
        },
        steps=250_000,
        preset=False,
    ),
    # Advantages of mean 0 taught most in the first 50,000 steps.
    "lander-third": Round(
        finalists={
            "advantages centred, scaled": lander(5, **CENTRED),
            "squared error, advantages centred, scaled": lander(5, critic_loss="mse", **CENTRED),
            "squared error, advantages centred": lander(5, critic_loss="mse", center_advantage="true"),
        },
        steps=250_000,
        commit="9860a59",
        preset=False,
    ),
    # What `auto` would take with these settings.
    "lander-relax": Round(
        finalists={
            "V 5 as RELAX": lander(5, estimator="relax", surrogate_scale="fitted", surrogate_lr="0.0003"),
        },
        steps=250_000,
        preset=False,
    ),
    # In the unit of what advantages have been, a bonus that was too much.
    "lander-entropy": Round(
        finalists={"V 5, entropy 0.01, advantages scaled": lander(5, entropy_coef="0.01", scale_advantage="true")},
        steps=250_000,
        preset=False,
    ),
    # The three that were ahead, on more seeds.
    "lander-last": Round(
        finalists={
            "V 5": lander(5),
            "V 5, squared error": lander(5, critic_loss="mse"),
            "squared error, advantages normalised": early(),
        },
        steps=250_000,
        seeds=6,
        preset=False,
    ),
    # It reached 200 first in the median, still beyond 100,000 steps: what might make more of the first ones.
    "lander-early": Round(
        finalists={
            "4 environments": early(num_envs="4"),
            "4 environments, rollouts of 256": early(num_envs="4", num_steps="256"),
            "bound 0.03": early(kl_bound="0.03"),
            "lambda 0.95": early(gae_lambda="0.95"),
        },
        steps=150_000,
        seeds=4,
        preset=False,
    ),
    # In rollouts of 64 V learned more with a replay of earlier ones.
    "lander-replay": Round(
        finalists={
            "replay of 2": early(value_replay="2"),
            "replay of 2, targets anew": early(value_replay="2", replay_targets="anew"),
            "replay of 6, targets anew": early(value_replay="6", replay_targets="anew"),
            "gamma 0.995": early(gamma="0.995"),
        },
        steps=150_000,
        seeds=4,
        preset=False,
    ),
    # The longest replay was ahead.
    "lander-replay-second": Round(
        finalists={
            "replay of 6, targets anew": early(value_replay="6", replay_targets="anew"),
            "replay of 12, targets anew": early(value_replay="12", replay_targets="anew"),
            "replay of 6": early(value_replay="6"),
        },
        steps=150_000,
        seeds=6,
        preset=False,
    ),
    # What `auto` takes with these settings, which have become the preset.
    "lander-estimators": Round(
        finalists={"as RELAX": early(estimator="relax", surrogate_scale="fitted", surrogate_lr="0.0003")},
        steps=150_000,
        seeds=6,
        preset=False,
    ),
    # Both presets, with and without a surrogate, in runs as long as a contest's.
    "lander-former": Round(
        finalists={
            "before, A2C": former(estimator="a2c"),
            "before, RELAX": former(),
            "now, A2C": early(),
            "now, RELAX": early(estimator="relax", surrogate_scale="fitted", surrogate_lr="0.0003"),
        },
        steps=500_000,
        seeds=6,
        preset=False,
        until_solved=True,
    ),
    # The preset of before as RELAX was soonest: variants of it.
    "lander-nearer": Round(
        finalists={
            "before, 8 environments": former(num_envs="8"),
            "before, rates 0.001": former(**FAST),
            "before, advantages normalised": former(normalize_advantage="true"),
            "before, bound 0.02": former(clip_range="inf", kl_bound="0.02"),
            "before, 16 passes": former(epochs="16"),
            "before, replay of 2": former(value_replay="2"),
            "before, minibatches of 64": former(minibatch_size="64"),
            "before, critic normalised": former(critic_layer_norm="on"),
            "before, marginal": former(estimator="marginal"),
        },
        steps=500_000,
        seeds=4,
        preset=False,
        until_solved=True,
    ),
    # What was ahead on the lander of four actions, on that of two numbers.
    "lander-continuous": Round(
        finalists={
            "V 5": recipe("lander-continuous", lander(5).settings(), log_std_init="-0.5"),
            "V 5, bounded actions": recipe("lander-continuous", lander(5).settings(), **BOUNDED),
            "V 5, bounded actions, bound 0.05": recipe(
                "lander-continuous", lander(5).settings(), kl_bound="0.05", **BOUNDED
            ),
            "V 5, squared error, advantages normalised": recipe(
                "lander-continuous",
                lander(5).settings(),
                critic_loss="mse",
                normalize_advantage="true",
                log_std_init="-0.5",
            ),
        },
        steps=250_000,
    ),
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
