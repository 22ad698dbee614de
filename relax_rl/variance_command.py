"""The command `variance`: how noisy the gradient of a saved agent is under each estimator, and where the noise comes from."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from relax_rl import runs
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder
from relax_rl.settings.fields import check, setting
from relax_rl.settings.options import parse

if TYPE_CHECKING:
    from rich.table import Table

    from relax_rl.agents import ActorCritic
    from relax_rl.envs import VectorEnvs
    from relax_rl.estimators.diagnostics import VarianceParts
    from relax_rl.gradient_variance import Contender
    from relax_rl.settings.config import EnvConfig

__all__ = ["VarianceConfig", "variance_command", "variance_run"]

_BURN_IN = 20
_STREAM = 10**12 + 1
"""Second word of the seed of the environments: neither a step count nor that of evaluations."""


@dataclass(frozen=True, kw_only=True)
class VarianceConfig:
    """Measure the variance of a trained agent's gradient."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    batches: int = setting(100, least=2)
    """Rollouts to take the variance over; each gives the gradient of one update."""
    fit_batches: int = setting(300, least=0, expected="at least 0")
    """Rollouts before them, on which surrogates are trained at the frozen policy; 0 leaves those estimators out."""
    states: int = setting(200, fits=lambda n: n == 0 or n >= 2, expected="at least 2, or 0 to leave the parts out")
    """States in which the variance is split into its parts; 0 leaves that out."""
    actions: int = setting(4, least=3)
    """Actions tried in each of these states."""
    checkpoint: str = "latest"
    """Which agent: latest, best (by the evaluations during training), or a checkpoint file."""
    seed: int = setting(0, least=0)
    """Seed of environments, actions and fresh surrogates."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        check(self)


def variance_command(args: Sequence[str], prog: str) -> int:
    """`variance`: read the options, measure, show."""
    description = (
        "Measure the variance of the policy gradient of a trained agent, with its parameters frozen: of every estimator "
        "that fits its actions, on the same rollouts, and what trajectory, action and state contribute to it."
    )
    config = parse(VarianceConfig, args, prog=prog, description=description)
    result = variance_run(config)
    _show(result)
    folder = RunFolder(Path(config.run))
    print(f"  written to  {folder.variance}\n  figure      {folder.variance_figure}")
    return 0


def variance_run(config: VarianceConfig) -> dict[str, Any]:
    """Measure the agent of a run; returns what `variance.json` then holds, and draws `variance.png`.

    Raises:
        CheckpointError: no such run or checkpoint, or none that can be read.
        SettingsError: the environment cannot be made, or the gradients would not fit into memory.
        RelaxRLError: the run's folder cannot be written.
    """
    import torch

    from relax_rl.checkpoints import CheckpointFolder
    from relax_rl.devices import resolve_device
    from relax_rl.estimators.diagnostics import squared_norm
    from relax_rl.gradient_variance import applied_gradients, applied_variances, contenders
    from relax_rl.training import set_threads
    from relax_rl.variance_figure import plot_variances

    folder = RunFolder(Path(config.run))
    trained = runs.read_config(folder)
    with ExitStack() as stack:
        set_threads(trained.run.threads, stack)
        agent, path = CheckpointFolder(folder.checkpoints).load(
            config.checkpoint, str(resolve_device(config.device)), warn=lambda line: warnings.warn(line, stacklevel=2)
        )
        agent.generator.manual_seed(config.seed)
        # Also without surrogates to fit: at first all environments stand at the start of an episode.
        before = max(config.fit_batches, _BURN_IN)
        entrants = contenders(agent, fit_batches=before if config.fit_batches else 0, seed=config.seed)
        envs = stack.enter_context(_envs(trained.env, config.seed))
        with _progress("rollouts", before + config.batches) as progress:
            draws = applied_gradients(
                agent, envs, entrants, num_batches=config.batches, fit_batches=before, progress=progress
            )
        applied = applied_variances(draws, generator=torch.Generator().manual_seed(config.seed))
        parts, reason = _parts(agent, trained.env, entrants, config, stack)
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
    plot_variances(
        folder.variance_figure, applied, parts, title=f"{trained.env.env} · {agent.name} · {agent.steps:,} steps"
    )
    runs.write_json(folder.variance, result)
    return result


def _envs(config: EnvConfig, seed: int) -> VectorEnvs:
    """Environments as the agent was trained on, with a stream of their own."""
    from relax_rl.envs import make_envs

    return make_envs(
        config.env,
        num_envs=config.num_envs,
        seed=(seed, _STREAM),
        vectorization=config.vectorization,
        sticky_actions=config.sticky_actions,
        life_loss_terminal=config.life_loss_terminal,
        bins=config.bins,
    )


def _parts(
    agent: ActorCritic, env_config: EnvConfig, entrants: Sequence[Contender], config: VarianceConfig, stack: ExitStack
) -> tuple[dict[str, VarianceParts] | None, str | None]:
    """The parts, or why there are none."""
    from relax_rl.env_snapshots import ForkableEnv
    from relax_rl.variance_decomposition import decompose

    if config.states == 0:
        return None, "not asked for"
    try:
        env = ForkableEnv(env_config.env, bins=env_config.bins)
        stack.callback(env.close)
        with _progress("states", config.states) as progress:
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


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    print(f"{result['env']} · {result['estimator']} · {result['checkpoint']}")
    table = Table(title="Gradient of one update at frozen parameters", title_justify="left")
    table.add_column("estimator", no_wrap=True)
    for column in ("variance", "times A2C's", "95% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in result["applied"].items():
        ratio = found["ratio"]
        table.add_row(
            name,
            f"{found['variance']['value']:.3g}",
            f"{ratio['value']:.3g}",
            f"{ratio['low']:.3g} to {ratio['high']:.3g}",
        )
    console.print(table)
    print(
        f"over {result['batches']} rollouts of {result['rows_per_batch']} rows; the squared norm of the gradient itself "
        f"is {result['squared_gradient_norm']:.3g}"
    )
    if result["parts"] is None:
        print(f"no parts: {result['parts_left_out']}")
        return
    print()
    console.print(_table_of_parts(result["parts"]))
    print(f"over {result['states']} states with {result['actions']} actions each (value ± half the 95% interval)")


def _table_of_parts(parts: Mapping[str, Any]) -> Table:
    from rich.table import Table

    unit = 10.0 ** math.floor(math.log10(max(parts["a2c"]["total"]["value"], 1e-30)))
    table = Table(title=f"Parts of the variance of one row, in units of {unit:g}", title_justify="left")
    table.add_column("estimator", no_wrap=True)
    columns = ("trajectory", "action", "state", "total")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in parts.items():
        cells = [
            (found[part]["value"] / unit, (found[part]["high"] - found[part]["low"]) / 2 / unit) for part in columns
        ]
        table.add_row(name, *(f"{_short(value)} ± {_short(half)}" for value, half in cells))
    return table


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}" if abs(number) < 1e5 else f"{number:.0e}"


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal; elsewhere nothing."""
    if not sys.stdout.isatty():
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
