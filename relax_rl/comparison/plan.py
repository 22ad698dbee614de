"""What a comparison consists of: environments, folders, and the tasks of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, file_names, safe_name
from relax_rl.comparison.peers import check_actions, check_arguments, check_wrapped_peer, planned
from relax_rl.comparison.task import Task, read_outcome
from relax_rl.errors import SettingsError
from relax_rl.runs.folder import KeepingFolder, RunFolder, Within
from relax_rl.runs.record import NAMING_CODE, read_config, read_record
from relax_rl.settings.fields import flat
from relax_rl.settings.naming import is_own
from relax_rl.settings.synonyms import flag

if TYPE_CHECKING:
    from relax_rl.settings.agent import AgentConfig
    from relax_rl.settings.config import TrainConfig

__all__ = [
    "TOGETHER",
    "Environment",
    "Folder",
    "check_contestants",
    "check_same_settings",
    "make_environments",
    "options",
    "own_config",
    "run_task",
    "variance_reference",
]

TOGETHER = "together"
"""In the names of folders, in place of an environment's."""
SNAPSHOTS = 30
"""Checkpoints of a run among which agents are frozen."""


@dataclass(frozen=True)
class Environment:
    """An environment of a comparison.

    Attributes:
        name: as it was asked for, `ID` or `ID,bins=N`.
        total_steps: of a run.
        threshold: mean return of 100 episodes that counts as solved, if there is one.
        id: Gymnasium's, with the version that is taken.
        bins: values that each dimension of its actions is cut into; 0 leaves them as they are.
        kwargs: settings of its own, if any.
        wrapper: around each, as texts; see `make_envs`.
        frame_stack: observations that are shown at once; 0 for what is usual.
    """

    name: str
    total_steps: int
    threshold: float | None
    id: str
    bins: int = 0
    kwargs: Mapping[str, Any] | None = None
    wrapper: tuple[str, ...] = ()
    frame_stack: int = 0

    @property
    def making(self) -> dict[str, Any]:
        """The settings by which every contestant's are made, as far as there are any."""
        every = {"env_kwargs": self.kwargs, "wrapper": self.wrapper, "frame_stack": self.frame_stack}
        return {name: value for name, value in every.items() if value}


@dataclass(frozen=True)
class Folder(KeepingFolder):
    """Where the files of a comparison lie.

    Attributes:
        names: of files, by environment, or by environment and label, where they are not just `safe_name`.
    """

    names: Mapping[tuple[str, ...], str] = field(default_factory=dict, compare=False)

    holds = "comparison"
    folders = ("runs", "logs", "figures")
    config = Within("settings.json")
    """Options, versions and command, as JSON."""
    space = Within("tuning/search_space.json")
    """What its trials vary."""
    budget = Within("tuning/budget.json")
    """How long they have been worked on."""
    logs = Within("logs")
    """Folder of what runs printed."""

    @classmethod
    def holding(cls, path: Path, environments: Sequence[str], contestants: Sequence[Contestant]) -> Folder:
        """One in which whatever differs of these has files of its own."""
        labels = [contestant.label for contestant in contestants]
        groups = [(env,) for env in environments], product(environments, labels), product([TOGETHER], labels)
        return cls(path, {texts: name for group in groups for texts, name in file_names(group).items()})

    def sweep(self) -> None:
        super().sweep()
        KeepingFolder(self.path / "variance").sweep()  # made where something is measured

    def _name(self, *texts: str) -> str:
        return self.names.get(texts) or safe_name(*texts)

    def run(self, env: str, contestant: Contestant, seed: int) -> Path:
        """Folder of one run."""
        return self.path / "runs" / f"{self._name(env, contestant.label)}-s{seed}"

    def tuning(self, env: str, contestant: Contestant) -> Path:
        """Folder of the trials of one contestant on an environment, or on those of that name."""
        return self.path / "tuning" / self._name(env, contestant.label)

    def variance(self, env: str, stage: str) -> Path:
        """The variances measured at one stage of learning, as JSON."""
        return self.path / "variance" / f"{self._name(env)}-{stage}.json"

    def figure(self, env: str, what: str) -> Path:
        """A figure of one environment."""
        return self.path / "figures" / f"{self._name(env)}-{what}.png"


def make_environments(config: CompareConfig) -> tuple[list[Environment], dict[str, Any]]:
    """The environments, each of which is made once to see that it can be, and their spaces by name, actions uncut.

    Raises:
        SettingsError: none is given, or one that cannot be made, or a threshold that cannot be understood.
    """
    from relax_rl.backends.registry import with_version
    from relax_rl.envs import make_envs
    from relax_rl.settings.presets import preset_config

    if not config.env:  # nobody means twenty runs of a default one
        raise SettingsError("env is missing, expected the environments to compare on, such as --env CartPole-v1")
    given = config.thresholds()
    found, spaces = [], {}
    for name in config.env:
        env, bins = _parse_env(name)
        env = with_version(env)
        around: dict[str, Any] = {"wrappers": config.wrapper, "frame_stack": config.frame_stack}
        with make_envs(env, num_envs=1, seed=0, env_kwargs=config.env_kwargs, **around) as envs:
            spaces[name] = (envs.single_observation_space, envs.single_action_space)
            threshold = given.get(name, given.get("", envs.solve_threshold))
        _cut(spaces[name][1], bins)
        steps = config.total_steps or preset_config(env).run.total_steps
        found.append(
            Environment(name, steps, threshold, env, bins, config.env_kwargs, config.wrapper, config.frame_stack)
        )
        if config.stop_when_solved and threshold is None:
            raise SettingsError(f"{name} has no registered threshold to stop at; give one by --threshold {name}=VALUE")
    return found, spaces


def check_contestants(
    contestants: Sequence[Contestant], environments: Sequence[Environment], spaces: Mapping[str, Any]
) -> dict[tuple[str, str], AgentConfig]:
    """Make every agent once, so that what cannot work is told before anything is trained.

    Args:
        environments, spaces: as `make_environments` gives them.

    Returns:
        The settings that each agent keeps, by environment and label: nothing is normalised where there are only images.

    Raises:
        SettingsError: naming the contestant and the environment.
    """
    from relax_rl.agents import AGENTS, resolve_estimator

    kept = {}
    for env in environments:
        observations, actions = spaces[env.name]
        for contestant in contestants:
            if contestant.peer:
                check_wrapped_peer(env.id, env.wrapper)
                check_arguments(contestant.kind, contestant.settings)
                check_actions(contestant.kind, _cut(actions, env.bins), contestant.settings)
                continue
            try:
                config = own_config(env, contestant)
                cut = _cut(actions, config.env.bins)
                agent = AGENTS[resolve_estimator(contestant.kind, cut)](observations, cut, config=config.agent)
            except SettingsError as error:
                raise SettingsError(f"contestant {contestant.label!r} on {env.name}: {error}") from None
            kept[env.name, contestant.label] = agent.config
    return kept


def check_same_settings(
    config: CompareConfig,
    folder: Folder,
    environments: Sequence[Environment],
    contestants: Sequence[Contestant],
    settings: Mapping[tuple[str, str], AgentConfig],
) -> None:
    """Refuse to train further seeds of an agent that would have other settings than its runs so far: its preset has changed.

    Args:
        config: of the comparison, in which no settings are searched for.
        folder: of the comparison, with the runs so far.
        environments, contestants: of it.
        settings: as `check_contestants` gives them.

    Raises:
        SettingsError: naming a run and what differs.
    """
    for env in environments:
        for contestant in contestants:
            runs = [folder.run(env.name, contestant, seed) for seed in config.seed_range]
            begun = [run for run in runs if RunFolder(run).config.exists()]
            if contestant.peer or not begun or all(read_outcome(run) for run in runs):
                continue
            first = RunFolder(begun[0])
            now, then = flat(settings[env.name, contestant.label]), flat(read_config(first).agent)
            # What the record does not know yet came later, and is no preset's.
            known = [name for name in now if name in read_record(first)["agent"]]
            changed = [f"{name} {then[name]}, now {now[name]}" for name in known if then[name] != now[name]]
            if changed:
                raise SettingsError(
                    f"{begun[0]} was trained with {'; '.join(changed)}: the preset has changed since; "
                    "go on with the version that began it, or begin a new comparison"
                )


def variance_reference(contestants: Sequence[Contestant], config: CompareConfig) -> Contestant | None:
    """The contestant whose agents are frozen, or None if that is not asked for.

    Raises:
        SettingsError: it does not exist, or is a peer.
    """
    if not config.variance:
        return None
    own = {contestant.label: contestant for contestant in contestants if not contestant.peer}
    label = config.variance_of or ("a2c" if "a2c" in own else next(iter(own), ""))
    if label not in own:
        raise SettingsError(f"variance_of is {label!r}, expected one of {', '.join(own) or 'the estimators'}")
    return own[label]


def own_config(env: Environment, contestant: Contestant) -> TrainConfig:
    """What `train` makes of a contestant's settings on an environment.

    Raises:
        SettingsError: settings that cannot work together.
    """
    from relax_rl.settings.presets import preset_config

    settings = {"bins": env.bins, **env.making, **contestant.settings}
    return preset_config(env.id, contestant.kind, preset=settings.pop("preset", "auto"), **settings)


def run_task(
    config: CompareConfig,
    env: Environment,
    contestant: Contestant,
    seed: int,
    folder: str,
    *,
    name: str,
    total_steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    snapshots: bool = False,
) -> Task:
    """One run as a task.

    Args:
        folder: of the run, from that of the comparison.
        name: of the task.
        total_steps: those of the environment if left out.
        settings: over the contestant's own.
        snapshots: keep checkpoints of the whole way.
    """
    steps = total_steps or env.total_steps
    stop = env.threshold if config.stop_when_solved else None
    changes = {**contestant.settings, **(settings or {})}
    given: dict[str, Any] = {"env": env.id, "seed": seed, "total_steps": steps, "run_dir": folder}
    given |= {} if stop is None else {"stop_at_return": stop}
    given |= env.making
    if contestant.peer:
        texts = tuple(f"{name}={json.dumps(value)}" for name, value in changes.items())
        ours: dict[str, Any] = {"bins": env.bins, "algo": contestant.kind, **given, **({"set": texts} if texts else {})}
        steps = planned(env.id, contestant.kind, env.bins, steps)[1]
        program: tuple[str, ...] = ("relax_rl.comparison.peer_training",)
        again = {name: given[name] for name in ("env", "wrapper") if is_own(given.get(name))}
        resume = (*program, f"--resume={folder}", *options(again))
    else:
        # One thread for each of the runs side by side, unless asked for otherwise.
        ours = {"threads": 1, "tensorboard": False, "bins": env.bins, **changes, "estimator": contestant.kind, **given}
        every = {"checkpoint_interval": max(1, steps // SNAPSHOTS), "keep_checkpoints": 0} if snapshots else {}
        ours |= every
        program = ("relax_rl", "train", "--quiet")
        # What only a file names is not imported.
        own = {name: ours[name] for name in NAMING_CODE if is_own(ours.get(name))}
        resume = (*program, f"--resume={folder}", *options({**every, **own}))
    return Task(
        name=name,
        folder=folder,
        begin=(*program, *options(ours)),
        resume=resume,
        total_steps=steps,
        cpus=int(ours.get("threads", 1)),
        gpus=int(str(ours.get("device", "cpu")).startswith("cuda")),
    )


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings by name as options of a command."""
    found = []
    for name, value in settings.items():
        option = flag(name)
        if isinstance(value, bool):
            found.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, (tuple, list)):
            found += [option, *map(str, value)]
        elif isinstance(value, Mapping):
            found.append(f"{option}={json.dumps(dict(value))}")
        else:
            found.append(f"{option}={value}")
    return found


def _parse_env(name: str) -> tuple[str, int]:
    """Gymnasium's id and the number of bins from `ID` or `ID,bins=N`."""
    env, comma, setting = name.partition(",")
    if not comma:
        return env, 0
    key, _, number = setting.partition("=")
    if key.strip() != "bins" or not number.isdecimal() or int(number) < 2:
        raise SettingsError(f"env is {name!r}, expected an id, or ID,bins=N with at least 2 bins")
    return env, int(number)


def _cut(actions: Any, bins: int) -> Any:
    """The action space with each dimension cut into bins."""
    from relax_rl.backends.actions import ActionBins

    return ActionBins(actions, bins).space if bins else actions
