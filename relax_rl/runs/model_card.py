"""What is said of an agent where others find it: the card of a model repository."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from relax_rl.settings.config import ESTIMATORS, AgentConfig, EnvConfig, TrainConfig
from relax_rl.settings.presets import is_atari

__all__ = ["environment_of", "model_card", "portable"]

_ATARI = "frames of 84 x 84 in grey, one of four, stacked as the settings say"
"""What is done to an Atari game before the policy sees it."""
_NAMED = re.compile(r"(\w+=)?(.*)", re.DOTALL)
_UNBIASED = {
    "relax": "subtracts a learned, action-dependent control variate and adds it back by RELAX (Grathwohl et al. 2018)",
    "lax": "subtracts a learned, action-dependent control variate and adds it back by LAX (Grathwohl et al. 2018)",
    "marginal": "subtracts a learned, action-dependent control variate and adds its exact mean over the actions",
    "a2c": "subtracts a value function of the state alone from the returns",
    "reinforce": "multiplies the score by the returns as they are",
}


def model_card(
    config: TrainConfig,
    estimator: str,
    *,
    repo_id: str,
    step: int,
    evaluation: Mapping[str, Any] | None,
    files: Sequence[str],
    load: Sequence[str] = (),
    licence: str | None = None,
) -> str:
    """`README.md` of a model repository, with the metadata that hubs read.

    Args:
        config: of the run.
        estimator: its name.
        repo_id: `user/name`.
        step: environment steps that the agent has learned from.
        evaluation: what `evaluation.json` of the run holds, if it is there.
        files: names of those beside the card.
        load: lines of code that make `agent` (default: those that load it from the hub).
        licence: of the weights, as metadata has it.
    """
    env = config.env.env.rpartition(":")[2]
    load = load or _load(config, repo_id)
    head = _front_matter(env, estimator, repo_id, evaluation)
    head += [] if licence is None else [f"license: {json.dumps(licence)}"]
    lines = ["---", *head, "---", "", f"# {estimator} on {env}", ""]
    lines += [
        f"An agent of `relax_rl`, trained for {step:,} steps on `{config.env.env}`. It is one safetensors file of weights, statistics "
        "of the observations, spaces and settings, and contains no code.",
        "",
        "```python",
        *load,
        "action, state = agent.predict(observation, deterministic=True)",
        "```",
        "",
    ]
    if around := environment_of(config.env):
        lines += [
            f"It was trained on environments made with {', '.join(f'`{name}`' for name in around)}, as the settings below list them: make "
            "yours the same way. Its observations and actions are those of the environment with these changes.",
            "",
        ]
    lines += ["## Evaluation", "", _scores(evaluation), ""]
    if "learning_curve.png" in files:
        lines += ["![Learning curve](learning_curve.png)", ""]
    if "video.mp4" in files:
        lines += ["One episode: [video.mp4](video.mp4).", ""]
    lines += [
        '## What "unbiased" means here',
        "",
        _claim(config.agent, estimator),
        "",
        "## Settings",
        "",
        *_settings(config),
        "",
    ]
    return "\n".join(lines)


def environment_of(env: EnvConfig) -> dict[str, Any]:
    """What beside the id makes the environments that an agent knows, and what its observations and actions go through, where it is no default."""
    names = ("env_kwargs", "bins", "wrapper", "frame_stack", "drop_keys", "action_masks", "mask_key", "sticky_actions")
    plain = EnvConfig()
    found = {name: getattr(env, name) for name in names if getattr(env, name) not in (getattr(plain, name), {})}
    return found | ({"atari": _ATARI} if is_atari(env.env) else {})


def portable(value: Any) -> Any:
    """The same, of places on this machine the last part alone."""
    if isinstance(value, str):
        known = _NAMED.fullmatch(value)  # an argument of a wrapper is name=value
        assert known is not None
        name, text = known[1] or "", known[2]
        return f"{name}{PureWindowsPath(text).name}" if _is_place(text) else value
    if isinstance(value, Mapping):
        return {portable(name): portable(part) for name, part in value.items()}
    return [portable(part) for part in value] if isinstance(value, (list, tuple)) else value


def _is_place(text: str) -> bool:
    """Whether it is the absolute name of a file or folder, on any system."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return absolute or text.startswith(("~/", "~\\", "file://"))


def _load(config: TrainConfig, repo_id: str) -> list[str]:
    """Code that loads the agent from the hub, with the networks and the estimator of its user where it has such."""
    lines, before, networks = ["from relax_rl.runs.hub import load_from_hub"], list[str](), ""
    if (own := config.run.networks) is not None:
        module, _, name = own.partition(":")
        networks = ", networks=factory"
        if _is_importable(module, name):
            lines.append(f"from {module} import {name.partition('.')[0]}")
            before = [f"factory = {name}  # of the networks, by whoever trained it"]
        else:
            before = ["factory = ...  # that the networks were made by"]
    if ":" in config.run.estimator:
        lines = ["from relax_rl.agents import learn_of", *lines]
        before += [f"learn_of({json.dumps(config.run.estimator)})  # the estimator of whoever trained it"]
    elif config.run.estimator not in (*ESTIMATORS, "auto"):
        before += [f"# Register the estimator {config.run.estimator} first: relax_rl.agents.register."]
    return [*lines, "", *before, f"agent = load_from_hub({json.dumps(repo_id)}{networks})"]


def _is_importable(module: str, name: str) -> bool:
    return module != "__main__" and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def _claim(agent: AgentConfig, estimator: str) -> str:
    """What of the gradient is unbiased, with these settings."""
    if estimator not in _UNBIASED:
        return f"The estimator, {estimator}, is its user's own: nothing is claimed of its gradient here."
    aims = (
        "Given the states of a rollout, the first step on it is unbiased for the gradient that advantage actor-critic follows, whatever is "
        "subtracted. That gradient is itself approximate: the value function stands in for rewards beyond the rollout and, for lambda below "
        "1, for later rewards within it"
    )
    weight, told = agent.residual_weight, _UNBIASED[estimator]
    if weight != 1.0 and estimator in ("relax", "lax", "marginal"):
        share = "a share that is learned" if weight == "adaptive" else f"the share {weight:g}"
        told = f"lets an action-value critic stand in for the returns, and only {share} of the critic's residual multiplies the score"
        aims = "So it is biased where the critic is wrong, in exchange for less noise"
    elif agent.normalize_advantage:
        aims = (
            "Advantages are then divided by the standard deviation of the rows of a step, which biases it a little; without that division, "
            "the first step on a rollout would be unbiased for the gradient of advantage actor-critic, given the rollout's states"
        )
    return (
        f"The policy gradient {told}. {aims}. Later passes over the same rollout are biased as PPO's are, and nothing is claimed of the "
        "steps that Adam and gradient clipping make of gradients."
    )


def _front_matter(env: str, estimator: str, repo_id: str, evaluation: Mapping[str, Any] | None) -> list[str]:
    """YAML in the style of JSON, which is YAML too."""
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "relax_rl", estimator, env]
    lines = ["library_name: relax_rl", f"tags: {json.dumps(tags)}"]
    if evaluation is None:
        return lines
    value = f"{evaluation['return_mean']:.2f} +/- {evaluation['return_std']:.2f}"
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env, "type": env},
        "metrics": [{"type": "mean_reward", "name": "mean_reward", "value": value, "verified": False}],
    }
    index = [{"name": repo_id.rpartition("/")[2], "results": [result]}]
    return [*lines, f"model-index: {json.dumps(index)}"]


def _scores(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated: `python train_agent.py evaluate RUN` before pushing writes its returns here."
    how = "deterministic" if evaluation["deterministic"] else "sampled"
    cut_off, limit = evaluation.get("cut_off", 0), evaluation.get("step_limit", 0)
    after = f"{limit:,} steps" if limit else "a limit of steps"
    cut = (
        f" {cut_off} of them were cut off after {after}, and count with the return they had by then." if cut_off else ""
    )
    return (
        f"Return {evaluation['return_mean']:.2f} ± {evaluation['return_std']:.2f}: mean and standard deviation of "
        f"{evaluation['episodes']} episodes with raw rewards and {how} actions, seed {evaluation['seed']}.{cut}"
    )


def _settings(config: TrainConfig) -> list[str]:
    """A table of what differs from the defaults."""
    own, plain = asdict(config.agent), asdict(AgentConfig())
    changed = {name: value for name, value in own.items() if value != plain[name]}
    rows = {"seed": config.run.seed, "num_envs": config.env.num_envs, "preset": config.run.preset}
    rows |= {name: json.dumps(value) for name, value in portable(environment_of(config.env)).items()} | changed
    return ["| setting | value |", "|---|---|", *(f"| `{name}` | {_shown(value)} |" for name, value in rows.items())]


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text.replace("|", "\\|")
