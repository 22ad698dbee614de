"""Every knob of environments, agents and runs, with its meaning: the docstring under a field is its help.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from relax_rl.errors import SettingsError
from relax_rl.settings.fields import check, setting, to_json

__all__ = ["ESTIMATORS", "STEP_LIMIT", "AgentConfig", "EnvConfig", "RunConfig", "TrainConfig"]

Estimator = Literal["auto", "relax", "lax", "marginal", "a2c", "reinforce"]
Precision = Literal["float32", "bfloat16"]
Activation = Literal["tanh", "relu", "silu", "elu"]
TrackerName = Literal["wandb", "mlflow", "trackio"]
CNN = Literal["auto", "nature", "impala", "small", "none", "legacy"]
ESTIMATORS: tuple[str, ...] = ("relax", "lax", "marginal", "a2c", "reinforce")


STEP_LIMIT = 27_000
"""Steps of an episode that is scored: as many as Atari's games last at most."""


def _wrappers(texts: tuple[str, ...]) -> bool:
    return all("=" in text or ":" in text for text in texts) and "=" not in (texts or (":",))[0]


def _few(widths: tuple[int, ...]) -> bool:
    return len(widths) <= 64


def _all_own(names: tuple[str, ...]) -> bool:
    return all(":" in name for name in names)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environments an agent learns in."""

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
class AgentConfig:
    """How the agent learns: the same settings for every estimator."""

    DROPPED: ClassVar[dict[str, Any]] = {"surrogate_regression": 0.0, "surrogate_replay": 0, "advantage_scale": "none"}
    BEFORE: ClassVar[dict[str, Any]] = {"cnn": "legacy", "rescale_actions": False}

    num_steps: int = setting(5, least=1, cap=2**20)
    """Steps each environment takes between two updates."""
    gamma: float = setting(0.99, least=0.0, most=1.0)
    """Discount factor."""
    gae_lambda: float = setting(0.95, least=0.0, most=1.0)
    """GAE lambda: 0 trusts the value function alone, 1 the observed rewards alone."""
    normalize_advantage: bool = False
    """Advantages of each step of the policy, of a minibatch in passes, with mean 0 and standard deviation 1, as PPO's code has them; the estimate is biased by it."""
    policy_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the policy (and of a torso that it shares with the value function)."""
    value_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the value function."""
    surrogate_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the surrogate (relax, lax)."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """Learning rates stay constant, or fall linearly to zero at the last step."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimiser of policy and value function; the surrogate always uses Adam."""
    epochs: int = setting(1, least=1, cap=10_000)
    """Passes over each rollout; more than one needs --clip-range, --target-kl or --kl-bound."""
    minibatch_size: int = setting(0, least=0)
    """Rows of a rollout per step of the optimisers; 0 takes all of them at once."""
    clip_range: float = setting(math.inf, above=0.0, finite=False)
    """PPO's trust region: where the ratio of new to old probability has left 1 +- this in the direction of its advantage, the advantage's term is left out; inf clips nothing."""
    target_kl: float = setting(math.inf, above=0.0, finite=False)
    """No further epoch over a rollout once the policy's mean KL divergence from the one that acted is above this; inf for no limit."""
    kl_bound: float = setting(math.inf, above=0.0, finite=False)
    """Trust region of passes over a rollout: in each state the policy's KL divergence from the one that acted, in closed form, is held to this by a learned multiplier; inf for no bound."""
    kl_form: Literal["switch", "penalty"] = "switch"
    """With --kl-bound: the divergence takes the place of the objective in the states where it is above the bound (switch), or is added to it everywhere (penalty), times the multiplier."""
    kl_schedule: Literal["constant", "linear"] = "constant"
    """The bound stays constant, or falls linearly to a tenth at the last step."""
    multiplier_lr: float = setting(0.01, above=0.0, cap=1e3)
    """The most by which the logarithm of a learned multiplier moves in a step of the policy (--kl-bound, --entropy-target)."""
    value_replay: int = setting(0, least=0, cap=1_000)
    """Earlier rollouts that the value function learns from at each step beside the present one: less noise in its gradient; see --replay-targets."""
    replay_targets: Literal["kept", "anew"] = "kept"
    """With --value-replay: the returns of earlier rollouts stay as they were, or are computed anew at each update, by V-trace with the present policy and V."""
    surrogate_steps: int = setting(1, least=1, cap=10_000)
    """Steps of the surrogate per step of the policy; those beyond one are taken after it, with fresh noise behind the actions."""
    surrogate_scale: Literal["one", "fitted"] = "one"
    """How much of the surrogate enters the estimate: all of it (one), or the fraction between 0 and 1 that would have lowered the variance most over recent rollouts (fitted), none of a bad one."""
    entropy_coef: float = setting(0.0, least=0.0)
    """Weight of the entropy bonus."""
    entropy_schedule: Literal["constant", "linear"] = "constant"
    """The entropy bonus stays constant, or falls linearly to zero at the last step."""
    entropy_target: float | None = None
    """The weight of the entropy bonus is learned, from --entropy-coef (or 0.01), so that the mean entropy tends to this: continuous actions in nats per dimension, before tanh if squashed; discrete ones as a fraction of the uniform distribution's over what may be chosen."""
    value_coef: float = setting(0.5, least=0.0)
    """Weight of the value loss; matters for a shared torso and for the joint clipping of gradients."""
    max_grad_norm: float = setting(0.5, above=0.0, finite=False)
    """Norm to which the gradient of policy and value function is clipped; inf clips nothing."""
    hidden: tuple[int, ...] = setting(
        (64, 64), least=1, cap=2**14, fits=_few, expected="at most 64 widths of at least 1"
    )
    """Widths of the hidden layers of policy and value function (vector observations)."""
    surrogate_hidden: tuple[int, ...] = setting(
        (64, 64), least=1, cap=2**14, fits=_few, expected="at most 64 widths of at least 1"
    )
    """Widths of the hidden layers of the surrogate."""
    activation: Activation = "tanh"
    """Activation of policy and value function (CNNs use ReLU)."""
    layer_norm: bool = False
    """Normalise the hidden layers of policy and value function before their activations (LayerNorm)."""
    critic_hidden: tuple[int, ...] = setting(
        (), least=1, cap=2**14, fits=_few, expected="at most 64 widths of at least 1, or none for those of --hidden"
    )
    """Widths of the hidden layers of the value function; those of --hidden if none is named."""
    critic_layer_norm: Literal["auto", "on", "off"] = "auto"
    """Normalise the hidden layers of the value function; auto does as --layer-norm says."""
    critic_loss: Literal["mse", "hl_gauss"] = "mse"
    """What V learns by: the squared error, or the cross entropy of a distribution over bins, whose mean V is, against a Gaussian around the return (hl_gauss)."""
    critic_bins: int = setting(101, least=3, cap=2**12)
    """hl_gauss: bins of the distribution."""
    critic_range: float = setting(10.0, least=0.1, cap=1e6)
    """hl_gauss: the bins go from minus this to this, in units of the returns' running root mean square; returns beyond count as the last bin, see value/clipped."""
    share_torso: Literal["auto", "on", "off"] = "auto"
    """Policy and value function share all but their last layers; auto does so where both see the same images."""
    residual: bool = False
    """Hidden layers of policy and value function that are as wide as the one before add to what they get."""
    memory: Literal["none", "gru", "lstm"] = "none"
    """What policy and value function remember of an episode, behind their hidden layers: a GRU, an LSTM, or nothing."""
    memory_size: int = setting(64, least=1, cap=2**14)
    """Width of that memory."""
    surrogate_activation: Activation = "tanh"
    """Activation of the surrogate; relu has no curvature in the action to learn from."""
    cnn: CNN = "auto"
    """What reads images: the Nature CNN (sides of at least 36), the deep one of IMPALA, a small one for grids such as MiniGrid's and MinAtar's, no CNN but the MLP (none), or by their sides nature or small (auto); legacy as before there was a choice: nature for large images of bytes, the MLP for all others."""
    cnn_features: int = setting(512, least=1, cap=2**16)
    """Width of the last layer of the Nature CNN and of IMPALA's (image observations); behind the small one stand --hidden."""
    embed: int = setting(0, least=0, cap=2**12)
    """Numbers that stand for each choice of a Discrete or MultiDiscrete leaf of the observations, learned; 0 writes choices one-hot."""
    policy_keys: tuple[str, ...] = ()
    """Leaves of Dict or Tuple observations that the policy sees, by name: keys joined by dots; all if none is named."""
    critic_keys: tuple[str, ...] = ()
    """Leaves of Dict or Tuple observations that the value function and the surrogate see; all if none is named."""
    precision: Precision = "float32"
    """Arithmetic of the CNN: bfloat16 is faster where the processor has it, and rounds to three digits; weights and everything but the CNN stay float32."""
    policy_head_scale: float = setting(0.01, above=0.0, cap=1e3)
    """Scale of the orthogonal weights of the policy's last layer at the start: small ones begin close to uniform or centred actions."""
    log_std_init: float = 0.0
    """Continuous actions: initial log standard deviation."""
    ordinal_std_init: float = setting(math.inf, least=0.01, finite=False)
    """MultiDiscrete actions whose choices are in order, as those of --bins: initial standard deviation of each around the middle, the first choice standing for -1 and the last for 1; inf begins with all choices alike."""
    state_dependent_std: bool = False
    """Continuous actions: the standard deviation is an output of the network instead of a free parameter."""
    squash: bool = False
    """Continuous actions: squash by tanh onto the bounds instead of clipping to them."""
    action_distribution: Literal["gaussian", "beta"] = "gaussian"
    """Continuous actions: a Gaussian, or a beta distribution from bound to bound, which needs finite bounds and never leaves them."""
    rescale_actions: bool = True
    """Continuous actions with bounds far from -1 and 1 (half-width below 0.1 or above 10, or 0 not between them): the Gaussian's 0 and 1 stand for the middle and the half-width."""
    normalize_obs: bool = False
    """Normalise vector observations by their running mean and standard deviation."""
    normalize_keys: tuple[str, ...] = ()
    """With --normalize-obs, of Dict or Tuple observations: the parts that are normalised, such as speed or arm.speed; all vectors if none is named."""
    obs_clip: float = setting(10.0, above=0.0, finite=False)
    """With --normalize-obs: normalised observations are clipped to +- this; inf clips nothing."""
    obs_std_floor: float = setting(0.0, least=0.0)
    """With --normalize-obs: the least standard deviation that an entry is divided by, so that what hardly varies is not blown up."""
    normalize_reward: bool = False
    """Scale rewards by the running standard deviation of the discounted return."""
    reward_clip: float = setting(math.inf, above=0.0, finite=False)
    """Clip rewards to [-c, c] for learning; reported scores stay raw."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update: C++ for vector observations on the CPU (needs g++; seconds from a cache, else half a minute), a CUDA graph on a GPU. The same numbers to rounding, in less time; auto does it where a run is long enough to gain."""
    device: str = setting("cpu", resumable=True)
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        check(self)
        if self.epochs > 1 and not any(map(math.isfinite, (self.clip_range, self.target_kl, self.kl_bound))):
            raise SettingsError(
                f"epochs is {self.epochs}, expected 1, or a finite clip_range or target_kl beside it (or kl_bound)"
            )
        for name, usual in (("kl_form", "switch"), ("kl_schedule", "constant")):
            if getattr(self, name) != usual and not math.isfinite(self.kl_bound):
                raise SettingsError(f"{name} is {getattr(self, name)!r}, expected a finite kl_bound beside it")
        if self.entropy_target is not None and self.entropy_schedule != "constant":
            raise SettingsError(
                f"entropy_schedule is {self.entropy_schedule!r}, expected 'constant' beside entropy_target"
            )
        if self.normalize_keys and not self.normalize_obs:
            raise SettingsError(f"normalize_keys is {self.normalize_keys}, expected normalize_obs beside it")
        if self.action_distribution == "beta" and (self.squash or self.state_dependent_std):
            name = "squash" if self.squash else "state_dependent_std"
            raise SettingsError(
                f"{name} is True, but it is for action_distribution 'gaussian', not 'beta'; leave it off"
            )
        if self.replay_targets == "anew" and not self.value_replay:
            raise SettingsError("replay_targets is 'anew', expected value_replay of at least 1 beside it")
        if self.share_torso == "on":
            self.check_one_torso()

    def check_one_torso(self) -> None:
        """Raises SettingsError if the value function is to have a torso other than the policy's."""
        name = "critic_hidden" if self.critic_hidden not in ((), self.hidden) else ""
        if self.critic_layer_norm != "auto" and (self.critic_layer_norm == "on") != self.layer_norm:
            name = "critic_layer_norm"
        if name:
            raise SettingsError(
                f"{name} is {getattr(self, name)!r}, but the value function shares the policy's torso; set share_torso off"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run and what it leaves behind."""

    estimator: Estimator = setting("auto", open=True)
    """Gradient estimator; auto takes relax for discrete and hybrid actions and lax for continuous ones; module:name takes one of your own."""
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
    logger: tuple[str, ...] = setting((), fits=_all_own, expected="module:factory", of_the_call=True)
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
            "num_steps gamma gae_lambda reward_clip normalize_reward normalize_obs normalize_keys obs_clip obs_std_floor "
            "normalize_advantage"
        ),
        "optimisation": ("policy_lr value_lr lr_schedule optimizer epochs minibatch_size value_coef max_grad_norm"),
        "trust region and entropy": (
            "clip_range target_kl kl_bound kl_form kl_schedule entropy_coef entropy_schedule entropy_target multiplier_lr"
        ),
        "value function": "critic_hidden critic_layer_norm share_torso critic_loss critic_bins critic_range value_replay replay_targets",
        "surrogate": "surrogate_lr surrogate_steps surrogate_scale surrogate_hidden surrogate_activation",
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
