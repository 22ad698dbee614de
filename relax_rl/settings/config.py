"""Every knob of environments and runs, with its meaning, and those of agents beside them: the docstring under a field is its help.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from relax_rl.errors import SettingsError
from relax_rl.settings.agent import AgentConfig, Precision
from relax_rl.settings.fields import check, setting, to_json

__all__ = ["ESTIMATORS", "STEP_LIMIT", "AgentConfig", "EnvConfig", "Precision", "RunConfig", "TrainConfig"]

Estimator = Literal["auto", "relax", "lax", "marginal", "a2c", "reinforce"]
TrackerName = Literal["wandb", "mlflow", "trackio"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)[1:]


STEP_LIMIT = 27_000
"""Steps of an episode that is scored: as many as Atari's games last at most."""


def _wrappers(texts: tuple[str, ...]) -> bool:
    return all("=" in text or ":" in text for text in texts) and "=" not in (texts or (":",))[0]


def all_own(names: tuple[str, ...]) -> bool:
    return all(":" in name for name in names)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environments an agent learns in.

    Raises:
        SettingsError: as `AgentConfig`.
    """

    BEFORE: ClassVar[dict[str, Any]] = {"action_masks": "off"}

    env: str = setting("CartPole-v1", fits=bool, expected="the id of an environment")
    """Gymnasium id, such as CartPole-v1 or ALE/Pong-v5, or module:EnvId to import the module that registers it first, or module:ClassOrFunction that makes one environment."""
    num_envs: int = setting(8, least=1, cap=2**16, resumable=True)
    """Environments stepped side by side."""
    vectorization: Literal["auto", "native", "envpool", "sync", "async"] = setting("auto", open=True)
    """How the environments are stepped: vector code of Gymnasium or ale-py (native), threads in C++ (envpool), one process (sync), one process each (async), or the fastest of them that is the same task (auto), or by module:function of your own; --backend is the same option."""
    sticky_actions: float = setting(0.25, least=0.0, below=1.0)
    """Atari: probability that the previous action is repeated instead of the new one."""
    life_loss_terminal: bool = True
    """Atari: treat a lost life as the end of an episode for learning; the game itself goes on."""
    bins: int = setting(
        0, cap=2**16, fits=lambda n: n == 0 or n >= 2, expected="at least 2, or 0 to leave actions continuous"
    )
    """Continuous actions: cut each dimension into this many equally spaced values, bounds included, and choose among them; 0 leaves them continuous."""
    env_kwargs: dict[str, Any] | None = None
    """Settings of the environment itself: name=value pairs, values in JSON, or one JSON object: --env-kwargs use_lidar=false gap=100."""
    drop_keys: tuple[str, ...] = ()
    """Leaves of Dict observations to leave out, by name: keys joined by dots; text and whatever else no network reads is left out anyway."""
    wrapper: tuple[str, ...] = setting(
        (), repeatable=True, fits=_wrappers, expected="module:Wrapper, and name=value pairs behind it"
    )
    """Wrapper around each environment, or around all of them if it is a vector wrapper: module:Wrapper, and name=value behind it for what it is called with; give the option again for another one around the first. A run that is gone on with or scored has to be told of them again."""
    frame_stack: int = setting(0, least=0, cap=1_024)
    """Last observations that are seen at once, stacked leaf by leaf; 0 for 4 in Atari and none elsewhere."""
    info_keys: tuple[str, ...] = ()
    """Numbers among the infos that are logged beside success, by name, as means over the steps of an episode; all for every number."""

    action_masks: Literal["auto", "off", "info", "method"] = "auto"
    """Which actions may be chosen is what action_mask of the environment's infos says (info), or its method action_masks() (method), or either where it is there (auto); off lets all be chosen."""
    mask_key: str | None = None
    """Dict observations: the leaf that says which actions may be chosen, in place of these; keys joined by dots."""

    def __post_init__(self) -> None:
        check(self)
        if self.mask_key is not None and self.action_masks != "auto":
            raise SettingsError(f"mask_key is {self.mask_key!r}, expected action_masks auto beside it")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run and what it leaves behind.

    Raises:
        SettingsError: as `AgentConfig`.
    """

    estimator: Estimator = setting("auto", open=True)
    """Gradient estimator; auto takes relax for discrete and hybrid actions and lax for continuous ones; module:name takes one of your own. PPO is a2c with --epochs, --minibatch-size and --clip-range."""
    networks: str | None = None
    """Networks of your own: module:factory; a run that is gone on with has to be told of them again."""
    preset: str = "none"
    """Good settings under the ones given: auto goes by the environment, none takes the plain defaults, or a preset's name."""
    total_steps: int = setting(500_000, least=1, resumable=True)
    """Environment steps, summed over all environments."""
    seed: int = setting(0, least=0, cap=2**63 - 1)
    """Seed of every random stream of the run."""
    run_dir: str | None = setting(None, of_the_call=True)
    """Folder of the run (default: runs/ENV-ESTIMATOR-sSEED-TIME)."""
    stop_at_return: float | None = setting(None, finite=False, resumable=True)
    """Stop once the mean return of the last 100 episodes reaches this."""
    stop_at_step: int | None = setting(None, least=1, resumable=True, of_the_call=True)
    """Pause at this step, as Ctrl-C does: schedules stay those of --total-steps, and --resume goes on."""
    resume: str | None = setting(None, of_the_call=True)
    """Folder of a run to go on with; its settings are taken over, --total-steps may be raised."""
    eval_interval: int = setting(0, least=0, resumable=True)
    """Steps between evaluations on separate environments; 0 evaluates never."""
    eval_episodes: int = setting(10, least=1, cap=10**6, resumable=True)
    """Episodes per evaluation."""
    eval_step_limit: int = setting(STEP_LIMIT, least=0, resumable=True)
    """Steps after which an episode of an evaluation is cut off, and counts with the return it has by then; 0 for no limit."""
    checkpoint_interval: int = setting(50_000, least=1, resumable=True)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = setting(2, least=0, resumable=True)
    """How many checkpoints are kept, the newest ones, besides the best; 0 keeps all."""
    log_interval: int = setting(2_000, least=1, resumable=True)
    """Steps between rows of progress.csv and points in TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    track: tuple[TrackerName, ...] = setting((), resumable=True)
    """Trackers that get the run's numbers too, one or more: each needs the extra of its name; none if none is named."""
    track_project: str | None = setting(None, fits=bool, expected="the name of a project, or nothing", resumable=True)
    """Project of the trackers, the experiment in MLflow (default: the environment's id); the run is called as its folder."""
    logger: tuple[str, ...] = setting((), fits=all_own, expected="module:factory", of_the_call=True)
    """Loggers of your own: module:factory, called with the TrainConfig; a run that is gone on with has to be told of them again."""
    quiet: bool = setting(False, resumable=True, of_the_call=True)
    """Show no progress: what came of the run, in one line, and errors alone are told."""
    threads: int = setting(1, least=0, cap=1_024, resumable=True)
    """CPU threads for tensor work; 0 takes all cores, shared among the workers of a machine. More than one pays only for images or wide networks."""
    profile: bool = setting(False, resumable=True, of_the_call=True)
    """Measure where the time goes: profile.md and profile.json, and a trace of a few updates, in the run's folder."""
    worker_timeout: float = setting(1800.0, above=0.0, resumable=True)
    """Under torchrun: seconds that workers wait for one another before the run ends; longer than an evaluation takes."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an agent and leave a run folder with its settings, curves and checkpoints."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "what everyone sets": "env estimator total_steps seed num_envs stop_at_return preset resume run_dir device",
        "rollouts and returns": (
            "num_steps gamma gae_lambda soft_returns reward_clip normalize_reward normalize_obs normalize_keys obs_clip obs_std_floor "
            "normalize_advantage scale_advantage"
        ),
        "optimisation": ("policy_lr value_lr lr_schedule optimizer epochs minibatch_size value_coef max_grad_norm"),
        "trust region and entropy": (
            "clip_range target_kl kl_bound kl_form kl_schedule entropy_coef entropy_schedule entropy_target multiplier_lr"
        ),
        "value function": "critic_hidden critic_layer_norm share_torso critic_loss critic_bins critic_range value_replay replay_targets",
        "surrogate": (
            "surrogate_lr surrogate_steps surrogate_loss residual_weight surrogate_scale surrogate_hidden surrogate_activation "
            "surrogate_layer_norm"
        ),
        "networks": (
            "hidden activation layer_norm residual memory memory_size cnn cnn_features precision embed policy_keys critic_keys "
            "networks"
        ),
        "actions": (
            "policy_head_scale log_std_init ordinal_std_init state_dependent_std squash action_distribution rescale_actions"
        ),
        "environment": (
            "env_kwargs wrapper frame_stack drop_keys info_keys action_masks mask_key vectorization bins sticky_actions "
            "life_loss_terminal"
        ),
        "evaluation": "eval_interval eval_episodes eval_step_limit",
        "output": (
            "log_interval checkpoint_interval keep_checkpoints stop_at_step tensorboard track track_project logger quiet profile"
        ),
        "hardware": "threads compile worker_timeout",
    }

    run: RunConfig = field(default_factory=RunConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, as written to `config.json`."""
        return to_json(self)
