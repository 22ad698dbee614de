"""Equal tuning: the same number of trials for every contestant, before anything is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from relax_rl.comparison.budget import Budget
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder
from relax_rl.comparison.pool import Outcomes
from relax_rl.comparison.search_space import (
    PUBLISHED,
    SearchSpace,
    check_peers,
    dimensions,
    read_space,
    read_starts,
)
from relax_rl.comparison.study import Study
from relax_rl.comparison.task import Task
from relax_rl.comparison.task_scores import read_anchors
from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import write_text_atomic, writing
from relax_rl.errors import RelaxRLError, SettingsError

__all__ = ["Studies", "check", "check_idle", "make_studies", "tune"]


def check(config: CompareConfig, contestants: Sequence[Contestant]) -> None:
    """Raises:
    SettingsError: Optuna is missing, the seeds of trials would be among those of the comparison, or options of tuning
        cannot work.
    """
    if find_spec("optuna") is None:
        raise SettingsError(f"--tune needs Optuna, which is missing: {install_line('compare')}")
    seeds, theirs = config.seed_range, config.tuning_seeds
    if seeds.start < theirs.stop and theirs.start < seeds.stop:
        raise SettingsError(f"first_seed is {config.first_seed}, expected seeds below {theirs.start} with --tune")
    read_anchors(config)
    path = _space_file(config, None if config.resume is None else Folder(Path(config.resume)))
    space = read_space(path)
    read_starts(path, space)
    if not any(_is_tuned(config, contestant, space) for contestant in contestants):
        raise SettingsError(
            f"tune is {config.tune}, but no contestant has a setting that is searched; leave --tune out"
        )
    if config.tune_peers:
        check_peers(contestants, space)


def check_idle(config: CompareConfig) -> None:
    """Raises SettingsError if an option of tuning is given where nothing is tuned."""
    plain = CompareConfig()
    for name in CompareConfig.SECTIONS["tuning"].split():
        if getattr(config, name) != getattr(plain, name):
            raise SettingsError(f"{name} is {getattr(config, name)!r}, expected tune of at least 1 beside it")


Studies = dict[tuple[str, str], Study]
"""By the names of environments and the labels of contestants; one that is tuned together stands there for each of its own."""


def make_studies(
    config: CompareConfig, environments: Sequence[Environment], contestants: Sequence[Contestant], folder: Folder
) -> Studies:
    """Those that a comparison asks for, whose search space it keeps.

    Raises:
        SettingsError: the space, or trials that were kept, cannot be read.
    """
    if not config.tune:
        return {}
    path = _space_file(config, folder)
    space = read_space(path)
    starts = read_starts(path, space)
    tuned = [contestant for contestant in contestants if _is_tuned(config, contestant, space)]
    if path != folder.space:
        with writing(folder.space):
            folder.space.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder.space, path.read_text(encoding="utf-8"))
    found: Studies = {}
    for contestant in tuned:
        if config.tune_together:
            found |= dict.fromkeys(
                [(env.name, contestant.label) for env in environments],
                Study(config, environments, contestant, folder, space, starts),
            )
        else:
            found |= {
                (env.name, contestant.label): Study(config, [env], contestant, folder, space, starts)
                for env in environments
            }
    order = [(env.name, contestant.label) for env in environments for contestant in tuned]
    return {key: found[key] for key in order}


def tune(studies: Studies, work: Callable[[list[Task]], Outcomes | None], budget: Budget | None = None) -> bool:
    """Bring all studies to their end, a batch of each at a time; returns False when interrupted.

    Args:
        work: runs tasks, and says what has become of them; None when interrupted.
        budget: once it is spent, no batch is begun, unless it takes one for all to have as many trials.

    Raises:
        RelaxRLError: runs of trials have failed, each for the first time; they are tried again where the search goes on.
    """
    every = list(dict.fromkeys(studies.values()))
    while left := [study for study in every if len(study.trials) < study.config.tune]:
        fewest = min(len(study.trials) for study in left)
        if budget is not None and budget.spent:
            even = len(left) == len(every) and all(len(study.trials) == fewest for study in every)
            if even and not any(study.is_open for study in every):
                break
        turn = [study for study in left if len(study.trials) == fewest]
        outcomes = work([task for study in turn for task in study.propose()])
        if outcomes is None:
            return False
        failed: list[str] = []
        for study in turn:
            if new := study.failed(outcomes):
                failed += new
            else:
                study.close()
        if failed:
            raise RelaxRLError(
                f"{len(failed)} {'run' if len(failed) == 1 else 'runs'} of trials failed, first {failed[0]}; "
                "mend that, and go on with --resume: a trial that fails again is left without a score"
            )
    return True


def _space_file(config: CompareConfig, folder: Folder | None) -> Path:
    """The file of the search space: what a comparison keeps of it wins over what it was begun with."""
    if folder is not None and folder.space.exists():
        return folder.space
    return Path(config.tune_space or PUBLISHED)


def _is_tuned(config: CompareConfig, contestant: Contestant, space: SearchSpace) -> bool:
    return bool(dimensions(contestant, space)) and (config.tune_peers or not contestant.peer)
