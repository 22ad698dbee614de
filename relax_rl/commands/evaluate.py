"""The command `evaluate`: score a saved agent, write `evaluation.json`, record a video."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.compute.host import set_threads
from relax_rl.compute.serialization import write_json
from relax_rl.runs.displays import describe_number, say
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.own_code import own_networks
from relax_rl.runs.record import known_env, read_config
from relax_rl.runs.zoo import env_of, run_of
from relax_rl.settings.config import STEP_LIMIT
from relax_rl.settings.fields import check, setting
from relax_rl.settings.options import parse
from relax_rl.settings.presets import is_atari

if TYPE_CHECKING:
    from relax_rl.runs.evaluation import Scores

__all__ = ["EvaluateConfig", "evaluate_command", "evaluate_config", "evaluate_run"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a trained agent on fresh environments with raw rewards, and record a video of it."""

    run: str
    """Folder of the run; zoo:NAME is a trained agent of the zoo, which goes to runs/zoo/NAME."""
    episodes: int = setting(20, least=1)
    """Episodes to play."""
    deterministic: bool = True
    """Take the most likely action instead of a sample; Atari games are sampled unless this is asked for."""
    checkpoint: str = "auto"
    """Which agent: auto (the best that the run has kept, else the latest), latest, best (by the evaluations during training, else by its episodes), or a checkpoint file."""
    video: bool = False
    """Record a video of one more episode; needs the extra video."""
    seed: int = setting(0, least=0)
    """Seed of the environments and of sampled actions."""
    num_envs: int = setting(8, least=1)
    """Environments stepped side by side."""
    step_limit: int = setting(STEP_LIMIT, least=0)
    """Steps after which an episode is cut off, and counts with the return it has by then; 0 for no limit."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""
    env: str | None = None
    """module:EnvId of the run's environment, if a module of your own registers it, or module:ClassOrFunction."""
    env_kwargs: dict[str, Any] | None = None
    """Settings of the environment over those of the run: name=value pairs, values in JSON, or one JSON object."""
    wrapper: tuple[str, ...] = setting((), repeatable=True)
    """module:Wrapper of the run's environments, and name=value pairs behind it, as given when it was trained."""
    estimator: str | None = None
    """module:name of the run's estimator, if it is your own."""
    networks: str | None = None
    """module:factory of the run's networks, if they are your own."""

    def __post_init__(self) -> None:
        check(self)


def evaluate_command(args: Sequence[str], prog: str) -> int:
    """`evaluate`: read the options, play, say the result."""
    evaluate_run(evaluate_config(args, prog), told=partial(print, flush=True))
    return 0


def evaluate_run(config: EvaluateConfig, *, told: Callable[[str], object] = str) -> dict[str, Any]:
    """Score the agent of a run, and record it if asked to; returns what `evaluation.json` then holds.

    Scores are told and written before the video is made, so that one that fails costs none of them.

    Args:
        config: what to play.
        told: takes what came of it, line by line (default: nobody).

    Raises:
        CheckpointError: no such run or checkpoint, or none that can be read.
        SettingsError: the environment cannot be made or recorded, or the extra `video` is missing.
        RelaxRLError: the run's folder cannot be written.
    """
    from relax_rl.runs.agent import load_agent
    from relax_rl.runs.evaluation import evaluate, evaluation_envs, now_and_then
    from relax_rl.runs.scores import digest_of
    from relax_rl.runs.video import record_video, rendering_env

    folder = RunFolder(Path(config.run))
    trained = read_config(folder)
    settings = known_env(trained.env, config.env, config.wrapper, config.env_kwargs)
    settings = replace(settings, num_envs=config.num_envs)
    networks = own_networks(config.estimator, config.networks)
    agent, path = load_agent(folder, config.checkpoint, config.device, networks=networks)
    with ExitStack() as stack:
        set_threads(trained.run.threads, stack)
        # Before anything is played, so that a missing extra costs no time.
        camera = stack.enter_context(rendering_env(settings, seed=config.seed)) if config.video else None
        envs = stack.enter_context(evaluation_envs(settings, episodes=config.episodes, seed=config.seed))
        how: dict[str, Any] = {name: getattr(config, name) for name in ("seed", "deterministic", "step_limit")}
        shown = now_and_then(partial(say, file=sys.stderr), config.episodes)
        scores = evaluate(agent, envs, episodes=config.episodes, progress=shown, **how)
        assert scores is not None  # nothing breaks it off
        about: dict[str, Any] = {
            "env": settings.env,
            "estimator": agent.name,
            "checkpoint": str(path),
            "step": agent.steps,
        }
        about |= {"agent_sha256": digest_of(agent), "env_kwargs": settings.env_kwargs or {}}
        result = {**about, **_found(config, scores)}
        try:
            write_json(folder.evaluation, result)
        finally:  # what cannot be written, for a full disk say, is told all the same
            for line in _lines(config, result):
                told(line)
        told(f"  written to  {folder.evaluation}")
        if camera is not None:
            video = folder.videos / f"step_{agent.steps:09d}-seed_{config.seed}.mp4"
            seen = record_video(agent, camera, video, **how)
            result |= {"video": str(video), "video_return": seen.mean}
            write_json(folder.evaluation, result)
            told(f"  video       {video} (return {seen.mean:g})")
    return result


def _found(config: EvaluateConfig, scores: Scores) -> dict[str, Any]:
    """What came of an evaluation, before there is a video."""
    return {
        "episodes": config.episodes,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "step_limit": config.step_limit,
        "return_mean": scores.mean,
        "return_std": scores.std,
        "return_min": min(scores.returns),
        "return_max": max(scores.returns),
        "length_mean": scores.length_mean,
        **scores.info_means,
        "cut_off": scores.cut_off,
        "cut_off_told": scores.cut_off_told("--step-limit"),
        "returns": list(scores.returns),
        "lengths": list(scores.lengths),
        "video": None,
        "video_return": None,
    }


def _lines(config: EvaluateConfig, result: Mapping[str, Any]) -> Iterator[str]:
    """What is said of it."""
    how = "deterministic" if result["deterministic"] else "sampled"
    yield f"{result['env']} · {result['estimator']} · {result['checkpoint']}"
    if config.checkpoint == "auto" and Path(result["checkpoint"]).stem == "best":
        yield f"the best agent that the run has kept, of step {result['step']:,}; --checkpoint latest plays the last one"
    yield (
        f"return {describe_number(result['return_mean'])} ± {describe_number(result['return_std'])} (mean ± standard deviation of "
        f"{result['episodes']} episodes, {how} actions, mean length {result['length_mean']:.0f})"
    )
    for name in filter(lambda name: name.startswith("info/"), result):
        success = name == "info/success_rate"
        yield f"  success     {result[name]:.1%}" if success else f"  {name}  {describe_number(result[name])}"
    if result["cut_off"]:
        yield f"  cut off     {result['cut_off_told']}"


def evaluate_config(args: Sequence[str], prog: str) -> EvaluateConfig:
    """The options; whether actions are sampled, if it is not given, goes by the run's environment."""

    def base(given: Mapping[str, Any]) -> EvaluateConfig:
        return EvaluateConfig(run=given["run"], deterministic=not is_atari(env_of(given["run"])))

    found = parse(EvaluateConfig, args, base=base, prog=prog)
    return replace(found, run=run_of(found.run))
