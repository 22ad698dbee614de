"""Every knob of an agent, with its meaning: the docstring under a field is its help.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from relax_rl.errors import SettingsError
from relax_rl.settings.fields import check, setting

__all__ = ["AgentConfig", "Precision"]

Precision = Literal["float32", "bfloat16"]
Activation = Literal["tanh", "relu", "silu", "elu"]
CNN = Literal["auto", "nature", "impala", "small", "none", "legacy"]


def _few(widths: tuple[int, ...]) -> bool:
    return len(widths) <= 64


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How the agent learns: the same settings for every estimator.

    Raises:
        SettingsError: for a value that a setting cannot have, or settings that do not go together.
    """

    DROPPED: ClassVar[dict[str, Any]] = {"surrogate_regression": 0.0, "surrogate_replay": 0, "advantage_scale": "none"}
    BEFORE: ClassVar[dict[str, Any]] = {"cnn": "legacy", "rescale_actions": False}

    num_steps: int = setting(5, least=1, cap=2**20)
    """Steps each environment takes between two updates."""
    gamma: float = setting(0.99, least=0.0, most=1.0)
    """Discount factor."""
    gae_lambda: float = setting(0.95, least=0.0, most=1.0)
    """GAE lambda, from one-step TD errors (0) to the observed rewards up to the rollout's end or a truncation, and V behind it (1)."""
    normalize_advantage: bool = False
    """Advantages of each step of the policy, of a minibatch in passes, with mean 0 and standard deviation 1, as PPO's code has them; the estimate is biased by it."""
    scale_advantage: bool = False
    """Divide the policy's gradient by the root mean square of the advantages of recent rollouts: the entropy bonus then weighs the same, however large rewards are and however well V knows them; the first rollout counts by its own."""
    policy_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the policy (and of a torso that it shares with the value function)."""
    value_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the value function."""
    surrogate_lr: float = setting(1e-3, above=0.0, cap=1e3)
    """Learning rate of the surrogate (relax, lax, marginal)."""
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
    kl_bound: float = setting(math.inf, least=1e-8, finite=False)
    """Trust region of passes over a rollout: in each state the policy's KL divergence from the one that acted, in closed form, is held to this by a learned multiplier; inf for no bound."""
    kl_form: Literal["switch", "penalty"] = "switch"
    """With --kl-bound: the divergence takes the place of the objective in the states where it is above the bound (switch), or is added to it everywhere (penalty), times the multiplier."""
    kl_schedule: Literal["constant", "linear"] = "constant"
    """The bound stays constant, or falls linearly to a tenth at the last step."""
    multiplier_lr: float = setting(0.01, above=0.0, cap=1e3)
    """The most by which the logarithm of a learned multiplier moves in a step of the policy (--kl-bound, --entropy-target)."""
    value_replay: int = setting(0, least=0, cap=1_000)
    """Earlier rollouts that the value function, and a surrogate with --surrogate-loss critic, learn from at each step beside the present one: less noise in their gradients; see --replay-targets."""
    replay_targets: Literal["kept", "anew"] = "kept"
    """With --value-replay: the returns of earlier rollouts stay as they were, or are computed anew at each update, by V-trace with the present policy and V."""
    surrogate_steps: int = setting(1, least=1, cap=10_000)
    """Steps of the surrogate per step of the policy; those beyond one are taken after it, with fresh noise behind the actions."""
    surrogate_loss: Literal["variance", "critic"] = "variance"
    """What the surrogate learns: to lower the variance of the estimate, or what an action is worth: the advantage, by squared error, so that it and the value function are an action-value critic q(s, a) (critic)."""
    residual_weight: float | Literal["adaptive"] = setting(
        1.0, least=0.0, most=1.0, expected="between 0 and 1, or 'adaptive'"
    )
    """With --surrogate-loss critic: how much of what the critic leaves of the advantage multiplies the score: all of it (1, unbiased) down to nothing (0, the critic's own gradient), or as much as the gradients of two halves of the environments agree on (adaptive)."""
    surrogate_scale: Literal["one", "fitted"] = "one"
    """How much of the surrogate enters the estimate: all of it (one), or the fraction between 0 and 1 that would have lowered the variance most over recent rollouts (fitted), none of a bad one."""
    entropy_coef: float = setting(0.0, least=0.0)
    """Weight of the entropy bonus."""
    entropy_schedule: Literal["constant", "linear"] = "constant"
    """The entropy bonus stays constant, or falls linearly to zero at the last step."""
    soft_returns: bool = False
    """Returns and advantages count the entropy bonus of every state that is come through, so that V and q are those of maximum-entropy RL: a reward at each step of the bonus' weight times the policy's entropy there."""
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
    surrogate_layer_norm: bool = False
    """Normalise the hidden layers of the surrogate before their activations."""
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
    log_std_init: float = setting(0.0, least=-20.0, most=20.0)
    """Continuous actions: initial log standard deviation."""
    ordinal_std_init: float = setting(math.inf, least=0.01, finite=False)
    """MultiDiscrete actions whose choices are in order, as those of --bins: initial standard deviation of each around the middle, the first choice standing for -1 and the last for 1; inf begins with all choices alike."""
    state_dependent_std: bool = False
    """Continuous actions: the standard deviation is an output of the network instead of a free parameter, its logarithm clipped to -10 and 2."""
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
    """Scale rewards by the running standard deviation of the discounted return, those that were seen to 10 at most."""
    reward_clip: float = setting(math.inf, above=0.0, finite=False)
    """Clip rewards to [-c, c] for learning; reported scores stay raw."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update: C++ for vectors and small images on the CPU (needs g++; seconds from a cache, else half a minute), a CUDA graph on a GPU. The same numbers to rounding, in less time; auto does it where a run is long enough to gain."""
    device: str = setting("cpu", resumable=True)
    """Device of the networks: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        check(self)
        for name, usual in (("kl_form", "switch"), ("kl_schedule", "constant")):
            if getattr(self, name) != usual and not math.isfinite(self.kl_bound):
                raise SettingsError(f"{name} is {getattr(self, name)!r}, expected a finite kl_bound beside it")
        if self.epochs > 1 and not any(map(math.isfinite, (self.clip_range, self.target_kl, self.kl_bound))):
            raise SettingsError(
                f"epochs is {self.epochs} and clip_range, target_kl and kl_bound are inf, expected one of them to bound what several "
                "epochs change, such as clip_range 0.2, or epochs 1"
            )
        if self.entropy_target is not None and self.entropy_schedule != "constant":
            raise SettingsError(
                f"entropy_schedule is {self.entropy_schedule!r}, expected 'constant' beside entropy_target"
            )
        self._check_units()
        if self.residual_weight != 1.0 and self.surrogate_loss != "critic":
            raise SettingsError(
                f"residual_weight is {self.residual_weight!r}, expected 1, or surrogate_loss 'critic' beside it: what lowers the "
                "variance is no critic"
            )
        if self.residual_weight != 1.0 and self.surrogate_scale != "one":
            raise SettingsError(
                f"surrogate_scale is {self.surrogate_scale!r}, expected 'one' beside residual_weight {self.residual_weight!r}: what "
                "is fitted is for a surrogate that changes no mean"
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

    def _check_units(self) -> None:
        if self.scale_advantage and self.normalize_advantage:
            raise SettingsError(
                "scale_advantage is True, expected False beside normalize_advantage; leave one of them off"
            )
        if not self.soft_returns:
            return
        if not self.entropy_coef and self.entropy_target is None:
            raise SettingsError(
                "soft_returns is True, expected an entropy_coef above 0, or an entropy_target, beside it"
            )
        for name in ("normalize_advantage", "scale_advantage"):
            if getattr(self, name):
                raise SettingsError(
                    f"{name} is True, expected False beside soft_returns: the bonus and the advantages have to have one unit"
                )

    def check_one_torso(self) -> None:
        """Raises SettingsError if the value function is to have a torso other than the policy's."""
        name = "critic_hidden" if self.critic_hidden not in ((), self.hidden) else ""
        if self.critic_layer_norm != "auto" and (self.critic_layer_norm == "on") != self.layer_norm:
            name = "critic_layer_norm"
        if name:
            raise SettingsError(
                f"{name} is {getattr(self, name)!r}, but the value function shares the policy's torso; set share_torso off"
            )
