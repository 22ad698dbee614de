"""Every knob, with its meaning: the docstring under a field is its help on the command line.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from relax_rl.errors import SettingsError

__all__ = ["ESTIMATORS", "AgentConfig", "EnvConfig", "RunConfig", "TrainConfig", "agent_config_from"]

Estimator = Literal["auto", "relax", "lax", "marginal", "a2c", "reinforce"]
Precision = Literal["float32", "bfloat16"]
Activation = Literal["tanh", "relu", "silu", "elu"]
ESTIMATORS: tuple[str, ...] = ("relax", "lax", "marginal", "a2c", "reinforce")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environments an agent learns in."""

    env: str = "CartPole-v1"
    """Gymnasium id, such as CartPole-v1 or ALE/Pong-v5, or module:EnvId to import the module that registers it first."""
    num_envs: int = 8
    """Environments stepped side by side."""
    vectorization: Literal["auto", "native", "envpool", "sync", "async"] = "auto"
    """How they are stepped: vector code of Gymnasium or ale-py (native), threads in C++ (envpool), one process (sync), one process each (async), or the fastest of them that is the same task (auto); --backend is the same option."""
    sticky_actions: float = 0.25
    """Atari: probability that the previous action is repeated instead of the new one."""
    life_loss_terminal: bool = True
    """Atari: treat a lost life as the end of an episode for learning; the game itself goes on."""
    bins: int = 0
    """Continuous actions: cut each dimension into this many equally spaced values, bounds included, and choose among them; 0 leaves them continuous."""

    def __post_init__(self) -> None:
        _require(bool(self.env), "env", self.env, "the id of an environment")
        _require(self.num_envs >= 1, "num_envs", self.num_envs, "at least 1")
        _require(0.0 <= self.sticky_actions < 1.0, "sticky_actions", self.sticky_actions, "a probability below 1")
        _require(self.bins == 0 or self.bins >= 2, "bins", self.bins, "at least 2, or 0 to leave actions continuous")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How the agent learns: the same settings for every estimator."""

    num_steps: int = 5
    """Steps each environment takes between two updates."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """GAE lambda: 0 trusts the value function alone, 1 the observed rewards alone."""
    policy_lr: float = 1e-3
    """Learning rate of the policy (and of a torso that it shares with the value function)."""
    value_lr: float = 1e-3
    """Learning rate of the value function."""
    surrogate_lr: float = 1e-3
    """Learning rate of the surrogate (relax, lax)."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """Learning rates stay constant, or fall linearly to zero at the last step."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimiser of policy and value function; the surrogate always uses Adam."""
    epochs: int = 1
    """Passes over each rollout; more than one needs --clip-range or --target-kl."""
    minibatch_size: int = 0
    """Rows of a rollout per step of the optimisers; 0 takes all of them at once."""
    clip_range: float = math.inf
    """PPO's trust region: where the ratio of new to old probability has left 1 +- this in the direction of its advantage, the advantage's term is left out; inf clips nothing."""
    target_kl: float = math.inf
    """No further epoch over a rollout once the policy's mean KL divergence from the one that acted is above this; inf for no limit."""
    value_replay: int = 0
    """Earlier rollouts that the value function learns from at each step beside the present one, with their returns as they were: less noise in its gradient."""
    surrogate_steps: int = 1
    """Steps of the surrogate per step of the policy."""
    surrogate_regression: float = 0.0
    """Share of the surrogate's objective that is least squares on the advantage; the rest is the variance of the gradient."""
    surrogate_replay: int = 0
    """Rollouts kept for the surrogate to learn from after the policy's steps, with advantages under V as it is by then, rows of earlier policies weighted by their present probability; 0 learns from the rows that the policy learned from, after it where it passes over them in minibatches, and otherwise in its own step."""
    surrogate_scale: Literal["one", "fitted"] = "one"
    """How much of the surrogate enters the estimate: all of it (one), or the fraction between 0 and 1 that would have lowered the variance most over recent rollouts (fitted), none of a bad one."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    entropy_schedule: Literal["constant", "linear"] = "constant"
    """The entropy bonus stays constant, or falls linearly to zero at the last step."""
    value_coef: float = 0.5
    """Weight of the value loss; matters for a shared torso and for the joint clipping of gradients."""
    max_grad_norm: float = 0.5
    """Norm to which the gradient of policy and value function is clipped; inf clips nothing."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of policy and value function (vector observations)."""
    surrogate_hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the surrogate."""
    activation: Activation = "tanh"
    """Activation of policy and value function (images use the Nature CNN with ReLU)."""
    surrogate_activation: Activation = "tanh"
    """Activation of the surrogate; relu has no curvature in the action to learn from."""
    cnn_features: int = 512
    """Width of the last layer of the Nature CNN (image observations)."""
    precision: Precision = "float32"
    """Arithmetic of the Nature CNN: bfloat16 is faster where the processor has it, and rounds to three digits; weights and everything but the CNN stay float32."""
    log_std_init: float = 0.0
    """Continuous actions: initial log standard deviation."""
    ordinal_std_init: float = math.inf
    """MultiDiscrete actions whose choices are in order, as those of --bins: initial standard deviation of each around the middle, the first choice standing for -1 and the last for 1; inf begins with all choices alike."""
    state_dependent_std: bool = False
    """Continuous actions: the standard deviation is an output of the network instead of a free parameter."""
    squash: bool = False
    """Continuous actions: squash by tanh onto the bounds instead of clipping to them."""
    normalize_obs: bool = False
    """Normalise vector observations by their running mean and standard deviation."""
    normalize_reward: bool = False
    """Scale rewards by the running standard deviation of the discounted return."""
    reward_clip: float = math.inf
    """Clip rewards to [-c, c] for learning; reported scores stay raw."""
    advantage_scale: Literal["none", "running"] = "none"
    """Divide advantages by a slow running root mean square, the same for every term of the estimate."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update: C++ for vector observations on the CPU (needs g++; seconds from a cache, else half a minute), a CUDA graph on a GPU. The same numbers to rounding, in less time; auto does it where a run is long enough to gain."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        _require(self.precision in get_args(Precision), "precision", self.precision, " or ".join(get_args(Precision)))
        for name in ("num_steps", "surrogate_steps", "cnn_features", "epochs"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("gamma", "gae_lambda", "surrogate_regression"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "between 0 and 1")
        for name in ("minibatch_size", "surrogate_replay", "value_replay"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        trusted = math.isfinite(self.clip_range) or math.isfinite(self.target_kl)
        _require(self.epochs == 1 or trusted, "epochs", self.epochs, "1, or a finite clip_range or target_kl beside it")
        for name in (
            "policy_lr",
            "value_lr",
            "surrogate_lr",
            "max_grad_norm",
            "reward_clip",
            "clip_range",
            "target_kl",
        ):
            _require(getattr(self, name) > 0.0, name, getattr(self, name), "above 0")
        # Below, what is far from the middle has no probability in float32.
        _require(self.ordinal_std_init >= 0.01, "ordinal_std_init", self.ordinal_std_init, "at least 0.01")
        for name in ("entropy_coef", "value_coef"):
            value = getattr(self, name)
            _require(value >= 0.0 and math.isfinite(value), name, value, "0 or above")
        for name in ("hidden", "surrogate_hidden"):
            _require(
                all(width >= 1 for width in getattr(self, name)), name, getattr(self, name), "widths of at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run and what it leaves behind."""

    estimator: Estimator = "auto"
    """Gradient estimator; auto takes relax for discrete actions and lax for continuous ones."""
    preset: str = "none"
    """Good settings under the ones given: auto goes by the environment, none takes the plain defaults, or a preset's name."""
    total_steps: int = 500_000
    """Environment steps, summed over all environments."""
    seed: int = 0
    """Seed of every random stream of the run."""
    run_dir: str | None = None
    """Folder of the run (default: runs/ENV-ESTIMATOR-sSEED-TIME)."""
    stop_at_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    resume: str | None = None
    """Folder of a run to go on with; its settings are taken over, --total-steps may be raised."""
    eval_interval: int = 0
    """Steps between evaluations on separate environments; 0 evaluates never."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    checkpoint_interval: int = 50_000
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept, the newest ones, besides the best; 0 keeps all."""
    log_interval: int = 2_000
    """Steps between rows of progress.csv and points in TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    quiet: bool = False
    """Show no progress display."""
    threads: int = 1
    """CPU threads for tensor work; 0 takes all cores, shared among the workers of a machine. More than one pays only for images or wide networks."""
    profile: bool = False
    """Measure where the time goes: profile.md and profile.json, and a trace of a few updates, in the run's folder."""
    worker_timeout: float = 1800.0
    """Under torchrun: seconds that workers wait for one another before the run ends; longer than an evaluation takes."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "eval_episodes", "checkpoint_interval", "log_interval"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("seed", "eval_interval", "threads", "keep_checkpoints"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        timeout = self.worker_timeout
        _require(timeout > 0.0 and math.isfinite(timeout), "worker_timeout", timeout, "above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an agent and leave a run folder with its settings, curves and checkpoints."""

    run: RunConfig = field(default_factory=RunConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, as written to `config.json`."""
        return asdict(self)


def agent_config_from(config: AgentConfig | None, settings: dict[str, Any]) -> AgentConfig:
    """One `AgentConfig` from an optional one and single settings that override it.

    Raises:
        SettingsError: for a setting that does not exist, naming near ones.
    """
    known = {f.name for f in fields(AgentConfig)}
    for name in settings:
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}{did_you_mean(name, known)}")
    base = asdict(config) if config is not None else {}
    return AgentConfig(**{**base, **settings})


def did_you_mean(word: str, known: Any, *, count: int = 3) -> str:
    """`; did you mean A, B?` for near misses, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value!r}, expected {expected}")
