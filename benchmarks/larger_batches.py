"""What a gradient of lower variance could buy: A2C on twice the batch at equal updates, beside RELAX or LAX on the plain one.

    python -m benchmarks.larger_batches                        # every task; runs that are there are kept
    python -m benchmarks.larger_batches --tasks CartPole-v1 --seeds 5

With twice the environments the policy's gradient has half the variance, and the value function learns from twice the data.
Each task is two `train_agent.py compare` commands, on the preset's batch and on twice as many environments with twice as many
steps, and leaves their reports in `results/twice_the_batch/`; `results/twice_the_batch.md` sums them up. Which half of the
larger batch pays was measured with agents whose policy or value function saw one half of it alone
(`results/larger_batches.md`; the README says with which commit).
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.matches import Match, main_of, write_summary
from relax_rl.settings.presets import preset_config

__all__ = ["MATCHES", "main"]

GROUP = "twice_the_batch"


def _matches(env: str, steps: int, threshold: float, surrogate: str = "relax", seeds: int = 10) -> dict[str, Match]:
    """On the preset's batch, and on twice that."""
    preset = preset_config(env, "a2c")
    plain = Match(
        env=env,
        steps=steps,
        contestants=(
            "a2c=a2c:value_replay=0",
            f"surrogate={surrogate}:value_replay=0",
            "a2c, value replay=a2c:value_replay=2",
            f"surrogate, value replay={surrogate}:value_replay=2",
        ),
        seeds=seeds,
        threshold=threshold,
    )
    twice = Match(
        env=env,
        steps=2 * steps,
        contestants=("a2c, twice the batch=a2c:value_replay=0",),
        settings={
            "num_envs": str(2 * preset.env.num_envs),
            "minibatch_size": str(2 * preset.agent.minibatch_size),
        },
        seeds=seeds,
        threshold=threshold,
    )
    return {env: plain, f"{env}-twice": twice}


MATCHES = {
    **_matches("CartPole-v1", 100_000, 475.0, seeds=20),
    **_matches("Acrobot-v1", 100_000, -100.0),
    **_matches("InvertedPendulum-v5", 150_000, 950.0, surrogate="lax"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/twice_the_batch.md` from the comparisons that are there."""
    intro = ("Of `-twice` half the steps are as many updates.", "")
    write_summary("Twice the batch at equal updates", GROUP, MATCHES, intro=intro)


if __name__ == "__main__":
    main()
