"""The command `compare`: contestants over environments and seeds, in worker processes, with a report at the end."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from relax_rl.comparison.config import CompareConfig, check_resumable, read_settings, write_settings
from relax_rl.comparison.contestants import read_contestants
from relax_rl.errors import SettingsError
from relax_rl.runs.folder import default_run_dir
from relax_rl.runs.interruption import Interruption, interruptible
from relax_rl.settings.options import parse

__all__ = ["compare_command", "run_comparison"]


def compare_command(args: Sequence[str], prog: str) -> int:
    """`compare`: read the options, train everything, say what came of it; returns the exit code."""
    config = _config(args, prog)
    with interruptible() as interruption:
        folder, result = run_comparison(config, command=f"{prog} {shlex.join(args)}", interruption=interruption)
    if result is None:
        number = interruption.signal or signal.SIGINT
        print(f"interrupted by {number.name}; go on with  {prog} --resume {shlex.quote(str(folder))}", flush=True)
        return 128 + number
    print("\n".join(_told(result, folder)), flush=True)
    return 1 if result["failures"] else 0


def run_comparison(
    config: CompareConfig, *, command: str = "", interruption: Interruption | None = None
) -> tuple[Path, dict[str, Any] | None]:
    """Run a comparison, or go on with the one in `config.resume`.

    Args:
        config: the options.
        command: kept in the report.
        interruption: when it holds, runs in progress are saved and nothing more is begun.

    Returns:
        the folder, and what its `comparison.json` holds; None instead if interrupted.

    Raises:
        SettingsError: environments, contestants or settings that cannot work, a missing extra, or a folder in use.
        CheckpointError: no comparison to go on with.
        RelaxRLError: the folder cannot be written, or no Ray cluster answers, or it is lost.
    """
    from relax_rl.comparison import peers, ray_cluster, tuning
    from relax_rl.comparison.plan import Folder, check_contestants, make_environments, variance_reference
    from relax_rl.comparison.pool import Pool, local
    from relax_rl.comparison.progress import Progress
    from relax_rl.comparison.session import Session

    if config.resume is not None:
        check_resumable(read_settings(Folder(Path(config.resume)).config), config)
    contestants = read_contestants(config.estimators, config.peers, config.set)
    if config.peers:
        peers.check_installed()
    if config.ray_address is not None:
        ray_cluster.check(config.ray_address)
    if config.tune:
        tuning.check_installed(config)
    variance_reference(contestants, config)
    environments, spaces = make_environments(config)
    check_contestants(contestants, environments, spaces)
    folder = Folder(Path(config.resume or config.run_dir or default_run_dir("compare")))
    folder.create(resumed=config.resume is not None)
    with ExitStack() as stack:
        held = stack.enter_context(folder.locked())
        cluster = None
        if config.ray_address is not None:
            cluster = stack.enter_context(ray_cluster.RayCluster(config.ray_address, folder.path))
        workers = config.workers if cluster is None else config.num_workers or max(1, cluster.about["cpus"])
        settings = replace(config, resume=None, run_dir=str(folder.path))
        commands = write_settings(folder.config, settings, command)
        progress = Progress(quiet=config.quiet, errors=None if cluster is None else cluster.errors)
        start = local(folder.path, held)
        if cluster is not None:
            start, cluster.warn = cluster.start, progress.warn
        pool = stack.enter_context(Pool(workers, folder.path, progress, start=start))
        stack.callback(progress.end)
        about = None if cluster is None else cluster.about
        session = Session(config, folder, environments, contestants, commands, about)
        # An interruption that has not come yet is false.
        return folder.path, session.run(pool, progress, Interruption() if interruption is None else interruption)


def _config(args: Sequence[str], prog: str) -> CompareConfig:
    """The options; those of a comparison that is gone on with are the defaults of the ones that are not given."""

    def base(given: CompareConfig) -> CompareConfig:
        if given.resume is None:
            return CompareConfig()
        # The folder may have been moved since.
        saved = read_settings(Path(given.resume) / "settings.json")
        return replace(saved, resume=given.resume, run_dir=given.resume, quiet=False)

    config = parse(CompareConfig, args, base=base, prog=prog)
    if config.resume and config.run_dir and Path(config.run_dir).resolve() != Path(config.resume).resolve():
        raise SettingsError(f"run_dir is {config.run_dir!r}, but a comparison stays in its folder, {config.resume!r}")
    return config


def _told(result: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines that the command ends with."""
    lines = []
    for env, summary in result["environments"].items():
        lines.append(env)
        width = max(map(len, summary["contestants"]), default=0)
        for label, entry in summary["contestants"].items():
            final = entry["final"]
            line = f"  {label:{width}}  final score {final['value']:.1f} [{final['low']:.1f}, {final['high']:.1f}]"
            if entry["solved"] is not None:
                line += f", solved {entry['solved']['solved']} of {entry['solved']['runs']}"
            lines.append(f"{line}, {entry['steps_per_second']:,.0f} steps/s")
    if result["failures"]:
        lines.append(f"{len(result['failures'])} failed, told in the report")
    return [*lines, f"  report   {folder / 'report.md'}", f"  figures  {folder / 'figures'}/*.png"]
