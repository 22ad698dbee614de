"""The command `push`: the agent of a run to a model repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relax_rl.runs.hub import push_to_hub, write_model
from relax_rl.runs.own_code import own_networks
from relax_rl.runs.zoo import run_of
from relax_rl.settings.fields import check, setting
from relax_rl.settings.options import parse

__all__ = ["PushConfig", "push_command"]


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Put a trained agent, with its card, into a model repository of the Hugging Face hub; needs the extra hub."""

    run: str
    """Folder of the run; zoo:NAME is a trained agent of the zoo, which goes to runs/zoo/NAME."""
    repo_id: str
    """user/name of the repository; it is made if need be."""
    checkpoint: str = "auto"
    """Which agent: auto (the best that the run has kept, else the latest), latest, best, or a checkpoint file."""
    private: bool = False
    """For its owner alone, if it is made."""
    endpoint: str | None = setting(None, fits=bool, expected="an address")
    """Address of the hub (default: the hub's own, or HF_ENDPOINT)."""
    dry_run: str | None = setting(None, fits=bool, expected="a folder")
    """Write what would go there into this new folder, and go to no hub."""
    estimator: str | None = None
    """module:name of the run's estimator, if it is your own."""
    networks: str | None = None
    """module:factory of the run's networks, if they are your own."""

    def __post_init__(self) -> None:
        check(self)


def push_command(args: Sequence[str], prog: str) -> int:
    """`push`: read the options, push or write what would be pushed, say where it is."""
    config = parse(PushConfig, args, prog=prog)
    config = replace(config, run=run_of(config.run))
    networks = own_networks(config.estimator, config.networks)
    if config.dry_run is not None:
        write_model(config.run, config.dry_run, config.repo_id, checkpoint=config.checkpoint, networks=networks)
        print(f"  written to {config.dry_run}; nothing was pushed")
        return 0
    url = push_to_hub(
        config.run,
        config.repo_id,
        checkpoint=config.checkpoint,
        private=config.private,
        endpoint=config.endpoint,
        networks=networks,
    )
    print(f"  pushed to  {url}")
    return 0
