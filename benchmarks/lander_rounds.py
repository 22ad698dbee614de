"""Who meets in `benchmarks.run_off` on the landers, round by round."""

from __future__ import annotations

from benchmarks.finalists import BOUNDED, CENTRED, FAST, Round, early, former, lander, recipe

__all__ = ["LANDER_ROUNDS"]

LANDER_ROUNDS: dict[str, Round] = {
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
}
"""By name, in the order in which they were played."""
