"""Agents on the Hugging Face hub, or whatever answers as it does: safetensors and JSON, a card, a curve and a video (extra `hub`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import write_bytes_atomic, write_json, write_text_atomic
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.model_card import environment_of, model_card, portable
from relax_rl.runs.record import read_config

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.agents.factory import NetworkFactory

__all__ = ["AGENT", "load_from_hub", "push_to_hub", "write_model"]

AGENT = "agent.safetensors"
"""The file that an agent is loaded from."""
_ABOUT = "config.json"
_NAME, _LONGEST_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII), 96
_MAY_BE_THERE = ("evaluation.json", "learning_curve.png", "video.mp4")
"""What some pushes bring and others do not: of an earlier one they would be about another agent."""
_OF_THIS_MACHINE = ("checkpoint", "env_kwargs", "video")
"""Of an evaluation: where files lie."""


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    checkpoint: str = "auto",
    private: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    networks: NetworkFactory | None = None,
) -> str:
    """Put the agent of a run into a model repository, which is made if need be.

    The agent goes without what only learning needs, its settings as JSON without folders and commands of this machine; with them go
    the card, and as far as they are there the learning curve, the scores that `evaluate` found of this agent, and the video that it made.
    Of these, what an earlier push has brought and this one does not is deleted.

    Args:
        run: folder of the run.
        repo_id: `user/name`.
        checkpoint: which agent: "auto" (the best that the run has kept, else the latest), "latest", "best", or a file.
        private: whether a repository that is made is for its owner alone.
        endpoint: address of the hub (default: that of `huggingface_hub`).
        token: of the user (default: the one that `hf auth login` keeps).
        networks: the factory that the agent was made with, if that is the user's own.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: no such run or checkpoint.
        SettingsError: the extra `hub` is missing, or that is no name of a repository.
        RelaxRLError: the hub does not answer, or refuses.
    """
    api = _api(endpoint, token)
    with TemporaryDirectory() as made:
        staged = Path(made)
        message = write_model(run, staged, repo_id, checkpoint=checkpoint, networks=networks)
        with _told("push to", repo_id):
            url = api.create_repo(repo_id, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=staged, commit_message=message, delete_patterns=list(_MAY_BE_THERE)
            )
    return str(url)


def write_model(
    run: str | Path,
    folder: str | Path,
    repo_id: str,
    *,
    checkpoint: str = "auto",
    networks: NetworkFactory | None = None,
) -> str:
    """Write the files that `push_to_hub` would put into a model repository, to look at, or to put there by other means.

    Args:
        run, checkpoint, networks: as for `push_to_hub`.
        folder: where they go; made if need be, and empty otherwise.
        repo_id: `user/name`, which the card tells how to load the agent from.

    Returns:
        One line about the agent, for the commit.

    Raises:
        CheckpointError: no such run or checkpoint.
        SettingsError: that is no name of a repository.
        RelaxRLError: the folder cannot be written to, or has files.
    """
    from relax_rl.runs.agent import load_agent
    from relax_rl.runs.scores import scores_of

    _check_name(repo_id)
    source = RunFolder(Path(run))
    config = read_config(source)
    agent, _ = load_agent(source, checkpoint, "cpu", networks=networks)
    target = _empty(Path(folder))
    agent.save(target / AGENT, optimizer=False)
    about = {
        "estimator": agent.name,
        "step": agent.steps,
        "env": config.env.env,
        **portable(environment_of(config.env)),
    }
    write_json(target / _ABOUT, {**about, "agent": asdict(config.agent)})
    evaluation = scores_of(source, agent, config.env)
    if evaluation is not None:
        kept = {name: x for name, x in evaluation.items() if name not in _OF_THIS_MACHINE}
        write_json(target / "evaluation.json", kept)
    for name, picture in _pictures(source, evaluation):
        write_bytes_atomic(target / name, _content(picture))
    files = sorted(path.name for path in target.iterdir())
    card = model_card(config, agent.name, repo_id=repo_id, step=agent.steps, evaluation=evaluation, files=files)
    write_text_atomic(target / "README.md", card)
    return f"{agent.name} after {agent.steps} steps"


def _check_name(repo_id: str) -> None:
    """Raises SettingsError for what the hub takes for no name of a repository."""
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or len(repo_id) > _LONGEST_NAME:
        raise SettingsError(f"repo_id is {repo_id!r}, expected user/name")


def _empty(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise RelaxRLError(f"cannot write to {folder}: {error.strerror or error}; name another folder") from None
    if used:
        raise RelaxRLError(f"{folder} has files, expected a new or an empty folder; name another one")
    return folder


def load_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    device: str = "cpu",
    networks: NetworkFactory | None = None,
) -> ActorCritic:
    """The agent of a model repository, to act, or to learn on with fresh optimisers.

    The file is kept in the cache of `huggingface_hub`. It is read as every checkpoint is: tensors and JSON, checked, and nothing run.

    Args:
        repo_id: `user/name`.
        revision: a branch, a tag or a commit (default: main).
        endpoint, token: as for `push_to_hub`.
        device: where the networks go.
        networks: the factory that the agent was made with, if that is somebody's own.

    Raises:
        CheckpointError: the file cannot be read, or holds no agent.
        SettingsError: the extra `hub` is missing, or that is no name of a repository.
        RelaxRLError: the hub does not answer, or has no such repository, or no agent in it.
    """
    from relax_rl.agents import ActorCritic

    api = _api(endpoint, token)
    with _told("load from", repo_id):
        path = api.hf_hub_download(repo_id, AGENT, revision=revision)
    # The cache keeps links of its own, which checkpoints must not be.
    return ActorCritic.load(Path(path).resolve(), device=device, networks=networks, optimizer=False)


def _pictures(folder: RunFolder, evaluation: Mapping[str, Any] | None) -> Iterator[tuple[str, Path]]:
    """The learning curve, and the video that an evaluation of this agent has made, under the names that the card has for them."""
    curve = folder.path / "learning_curve.png"
    if curve.is_file():
        yield "learning_curve.png", curve
    named = (evaluation or {}).get("video")
    if isinstance(named, str) and (video := folder.videos / Path(named).name).is_file():
        yield "video.mp4", video


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RelaxRLError(f"cannot read {path}: {error.strerror or error}; mend that, or take it away") from None


def _api(endpoint: str | None, token: str | None) -> Any:
    if find_spec("huggingface_hub") is None:
        raise SettingsError(f"the hub needs huggingface_hub, which is missing: {install_line('hub')}")
    from huggingface_hub import HfApi

    from relax_rl import __version__

    return HfApi(endpoint=endpoint, token=token, library_name="relax_rl", library_version=__version__)


@contextmanager
def _told(what: str, repo_id: str) -> Iterator[None]:
    """What the hub's library raises, in one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise SettingsError(f"repo_id is {repo_id!r}, expected user/name") from None
    except Exception as error:  # its own, those of the library that it speaks HTTP with, and the network's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RelaxRLError(f"cannot {what} {repo_id}: {reason}") from error
