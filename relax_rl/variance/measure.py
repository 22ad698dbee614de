"""The variance of the gradient of a saved agent, measured and written into the folder of its run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.compute.host import set_threads
from relax_rl.compute.serialization import write_json
from relax_rl.errors import SettingsError
from relax_rl.runs.displays import counting
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.own_code import own_networks
from relax_rl.runs.record import known_env, read_config
from relax_rl.settings.fields import check, setting

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.estimators.diagnostics import VarianceParts
    from relax_rl.settings.config import EnvConfig
    from relax_rl.variance.contenders import Contender

__all__ = ["VarianceConfig", "variance_run"]

_BURN_IN = 20
_STREAM = 10**12 + 1
"""Second word of the seed of the environments: neither a step count nor that of evaluations."""


@dataclass(frozen=True, kw_only=True)
class VarianceConfig:
    """Measure the variance of a trained agent's gradient."""

    run: str
    """Folder of the run; zoo:NAME is a trained agent of the zoo, which goes to runs/zoo/NAME."""
    batches: int = setting(100, least=2)
    """Rollouts to take the variance over; each gives the gradient of one update."""
    fit_batches: int = setting(300, least=0)
    """Rollouts before them, on which surrogates are trained at the frozen policy; 0 leaves those estimators out."""
    states: int = setting(200, fits=lambda n: n == 0 or n >= 2, expected="at least 2, or 0 to leave the parts out")
    """States in which the variance is split into its parts; 0 leaves that out."""
    actions: int = setting(4, least=3)
    """Actions tried in each of these states."""
    checkpoint: str = "latest"
    """Which agent: latest, best (by the evaluations during training, else by its episodes), or a checkpoint file."""
    seed: int = setting(0, least=0)
    """Seed of environments, actions and fresh surrogates."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""
    env: str | None = None
    """module:EnvId of the run's environment, if a module of your own registers it, or module:ClassOrFunction."""
    wrapper: tuple[str, ...] = setting((), repeatable=True)
    """module:Wrapper of the run's environments, as given when it was trained."""
    estimator: str | None = None
    """module:name of the run's estimator, if it is your own."""
    networks: str | None = None
    """module:factory of the run's networks, if they are your own."""

    def __post_init__(self) -> None:
        check(self)


def variance_run(config: VarianceConfig) -> dict[str, Any]:
    """Measure the agent of a run; returns what `variance.json` then holds, and draws `variance.png`.

    Args:
        config: taken as it is.

    Raises:
        CheckpointError: no such run or checkpoint, or none that can be read.
        SettingsError: the environment cannot be made, or the gradients would not fit into memory.
        RelaxRLError: the run's folder cannot be written.
    """
    import torch

    from relax_rl.estimators.diagnostics import squared_norm
    from relax_rl.runs.agent import load_agent
    from relax_rl.runs.evaluation import envs_of
    from relax_rl.runs.plotting import never_fatal
    from relax_rl.variance.contenders import contenders
    from relax_rl.variance.figure import plot_variances
    from relax_rl.variance.gradient import applied_gradients, applied_variances

    folder = RunFolder(Path(config.run))
    trained = read_config(folder)
    env = known_env(trained.env, config.env, config.wrapper)
    networks = own_networks(config.estimator, config.networks)
    with ExitStack() as stack:
        set_threads(trained.run.threads, stack)
        agent, path = load_agent(folder, config.checkpoint, config.device, networks=networks)
        agent.generator.manual_seed(config.seed)
        # Also without surrogates to fit: at first all environments stand at the start of an episode.
        before = max(config.fit_batches, _BURN_IN)
        fits = before if config.fit_batches else 0
        entrants = contenders(agent, fit_batches=fits, seed=config.seed, networks=networks)
        envs = stack.enter_context(envs_of(env, seed=(config.seed, _STREAM)))
        with counting("rollouts", before + config.batches) as progress:
            draws = applied_gradients(
                agent, envs, entrants, num_batches=config.batches, fit_batches=before, progress=progress
            )
        biased = [entrant.name for entrant in entrants if entrant.weight != 1.0]
        applied = applied_variances(draws, biased=biased, generator=torch.Generator().manual_seed(config.seed))
        parts, reason = _parts(agent, env, entrants, config, stack, masked=envs.action_mask is not None)
    result = {
        "env": trained.env.env,
        "estimator": agent.name,
        "checkpoint": str(path),
        "step": agent.steps,
        "rows_per_batch": agent.config.num_steps * envs.num_envs,
        "batches": config.batches,
        "fit_batches": config.fit_batches,
        "states": config.states,
        "actions": config.actions,
        "seed": config.seed,
        "squared_gradient_norm": squared_norm(draws["a2c"]),
        "applied": {name: asdict(found) for name, found in applied.items()},
        "parts": None if parts is None else {name: asdict(found) for name, found in parts.items()},
        "parts_left_out": reason,
    }
    write_json(folder.variance, result)
    title = f"{trained.env.env} · {agent.name} · {agent.steps:,} steps"
    with never_fatal("the figure"):
        plot_variances(folder.variance_figure, applied, parts, title=title)
    return result


def _parts(
    agent: ActorCritic,
    env_config: EnvConfig,
    entrants: Sequence[Contender],
    config: VarianceConfig,
    stack: ExitStack,
    *,
    masked: bool,
) -> tuple[dict[str, VarianceParts] | None, str | None]:
    """The parts, or why there are none."""
    from relax_rl.backends.snapshots import ForkableEnv
    from relax_rl.variance.decomposition import decompose

    if config.states == 0:
        return None, "not asked for"
    if agent.config.soft_returns:
        return None, "soft returns count an entropy in every reward, which is not followed here"
    try:
        env = ForkableEnv(
            env_config.env,
            bins=env_config.bins,
            drop_keys=env_config.drop_keys,
            wrappers=env_config.wrapper,
            frame_stack=env_config.frame_stack,
            action_masks=env_config.action_masks if masked else "off",
            mask_key=env_config.mask_key if masked else None,
            env_kwargs=env_config.env_kwargs,
        )
        stack.callback(env.close)
        if masked and env.mask is None:
            return None, f"a single environment of {env_config.env} gives no masks of actions, as many at once do"
        with counting("states", config.states) as progress:
            parts = decompose(
                agent,
                env,
                entrants,
                num_states=config.states,
                num_actions=config.actions,
                seed=config.seed,
                progress=progress,
            )
    except SettingsError as error:
        return None, str(error)
    return parts, None
