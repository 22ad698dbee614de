"""What is recorded: every setting spelled out, nothing from presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["CASES", "AgentCase", "Case", "ToyCase", "VaeCase"]

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that takes steps.

    Attributes:
        name: also that of the file of its numbers.
        settings: given to the constructor.
        workers: processes that take the steps together.
        compiled: whether compiled steps are to give the same numbers as well.
        single: float32 in place of float64.
        steps: how many are recorded.
        seed: of the experience, beside the name.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    workers: int = 1
    compiled: bool = False
    single: bool = False
    steps: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AgentCase(Case):
    """An agent that learns from stored rollouts.

    Attributes:
        estimator: its name.
        actions: "discrete", "multi-discrete", "bins", "bits" or "box".
        images: whether observations are images, else vectors.
        num_steps, num_envs: T and N of a rollout.
        fixed_temperature: whether gain and temperature of the surrogate are held at 1, where they would be learned.
    """

    estimator: str
    actions: str = "discrete"
    images: bool = False
    num_steps: int = 6
    num_envs: int = 4
    fixed_temperature: bool = False


@dataclass(frozen=True, kw_only=True)
class VaeCase(Case):
    """A belief network that learns from stored batches of 12 pixels."""

    estimator: str
    batch_size: int = 4


@dataclass(frozen=True, kw_only=True)
class ToyCase(Case):
    """A contestant of the toy problem."""

    estimator: str
    outcomes: int = 2


_PLAIN: Settings = {
    "hidden": (8,),
    "surrogate_hidden": (8,),
    "policy_lr": 1e-2,
    "value_lr": 2e-2,
    "surrogate_lr": 3e-2,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "activation": "silu",  # acting and compiled steps stay in torch, and so in double precision
    "surrogate_activation": "tanh",
    "compile": "off",
}
_DECAYING: Settings = {"lr_schedule": "linear", "entropy_coef": 0.02, "entropy_schedule": "linear"}
_PASSES: Settings = {"epochs": 3, "minibatch_size": 8, "clip_range": 0.15, "entropy_coef": 0.01}
_VARIANTS: dict[str, Settings] = {
    "plain": {"max_grad_norm": 0.4},
    "unclipped": {"activation": "tanh", "max_grad_norm": float("inf"), "optimizer": "rmsprop", **_DECAYING},
    "normalized": {"normalize_obs": True, "normalize_reward": True, "reward_clip": 2.0, "optimizer": "rmsprop"},
    "passes": _PASSES,
    "passes-kl": {**_PASSES, "clip_range": float("inf"), "target_kl": 0.001, "minibatch_size": 0, "epochs": 4},
    "minibatches": {"minibatch_size": 7, "normalize_obs": True},
    "value-replay": {"value_replay": 2, "normalize_reward": True},
    "value-replay-passes": {**_PASSES, "value_replay": 1},
}
_OF_SURROGATES: dict[str, Settings] = {
    "fitted": {"surrogate_scale": "fitted"},
    "fitted-passes": {**_PASSES, "surrogate_scale": "fitted", "normalize_obs": True},
    "surrogate-steps": {"surrogate_steps": 3, "surrogate_hidden": (8, 6), "surrogate_activation": "silu"},
    "surrogate-steps-passes": {**_PASSES, "surrogate_steps": 2, "surrogate_activation": "elu"},
}
_IN_BOX: dict[str, Settings] = {
    "squash": {"squash": True, "log_std_init": -0.5, "entropy_coef": 0.01},
    "state-dependent-std": {"state_dependent_std": True},
}
_BINS: Settings = {"ordinal_std_init": 0.5}
_IMAGES: Settings = {"cnn_features": 8, "policy_lr": 1e-3, "value_lr": 1e-3}


def _of_estimator(estimator: str) -> Iterator[AgentCase]:
    """The cases of one agent, without those on which nothing but its surrogate depends twice."""
    home = "box" if estimator == "lax" else "discrete"

    def case(name: str, settings: Settings, *, actions: str = home, **rest: Any) -> AgentCase:
        return AgentCase(
            name=f"agents/{estimator}-{name}",
            estimator=estimator,
            actions=actions,
            settings={**_PLAIN, **settings},
            **rest,
        )

    surrogate = estimator in ("relax", "lax", "marginal")
    variants = _VARIANTS | (_OF_SURROGATES if surrogate else {})
    yield from (case(name, settings) for name, settings in variants.items())
    if estimator in ("a2c", "reinforce", "lax"):
        yield from (case(name, settings, actions="box") for name, settings in _IN_BOX.items())
    if estimator != "lax":
        yield case("bins", {**_BINS, "normalize_reward": True}, actions="bins")
        yield case("bins-passes", {**_BINS, **_PASSES}, actions="bins")
        yield case("multi-discrete", {}, actions="multi-discrete")
        yield case("bits", {"entropy_coef": 0.01}, actions="bits")
        yield case("bits-passes", _PASSES, actions="bits")
    small: dict[str, Any] = {"images": True, "num_steps": 4, "num_envs": 2, "steps": 3, "single": True}
    yield case("images", _IMAGES, **small)
    yield case("images-passes", {**_IMAGES, **_PASSES, "minibatch_size": 4}, **small)
    fitted = {"surrogate_scale": "fitted"} if surrogate else {}
    yield case("two-workers", {**fitted, "normalize_obs": True, "normalize_reward": True, "value_replay": 1}, workers=2)
    yield case("two-workers-passes", {**_PASSES, "normalize_obs": True, **fitted}, workers=2)


_SEEDS = {
    "agents/relax-fitted": 17,
    "agents/lax-fitted": 7,
    "agents/marginal-fitted": 2,
    "agents/lax-fitted-passes": 7,
    "agents/marginal-fitted-passes": 5,
    "agents/relax-two-workers": 1,
    "agents/lax-two-workers": 5,
    "agents/lax-two-workers-passes": 8,
}
"""With these the fitted scale of the surrogate is neither 0 nor 1 at some step."""


def _agents() -> Iterator[AgentCase]:
    for estimator in ("a2c", "reinforce", "relax", "lax", "marginal"):
        for case in _of_estimator(estimator):
            case = replace(case, seed=_SEEDS.get(case.name, 0))
            if estimator in ("a2c", "reinforce", "relax") or case.workers == 1:
                yield case
            if estimator in ("relax", "lax", "marginal"):
                yield replace(case, name=f"{case.name}-fixed-temperature", fixed_temperature=True)
    kept: tuple[tuple[str, str, str, Settings], ...] = (
        ("relax", "surrogate-replay", "discrete", {**_PASSES, "surrogate_replay": 2}),
        ("lax", "surrogate-regression", "box", {"surrogate_regression": 0.5}),
        ("a2c", "advantage-scale", "discrete", {"advantage_scale": "running"}),
    )
    for estimator, name, actions, settings in kept:
        yield AgentCase(
            name=f"agents/{estimator}-{name}", estimator=estimator, actions=actions, settings={**_PLAIN, **settings}
        )


VAE_ESTIMATORS = (
    *("reinforce", "nvil", "rloo", "vimco", "simple-muprop", "muprop", "concrete", "straight-through"),
    *("straight-through-gumbel", "gumbel-rao", "reinmax", "dlax", "rebar", "relax", "arm", "disarm", "arms"),
    *("double-cv", "rodeo", "marginal", "enumerated"),
)
_NETWORK: Settings = {"surrogate_width": 5, "lr": 1e-2, "num_conditional": 3, "hidden_width": 5}
_MODELS: dict[str, Settings] = {
    "linear1": {"layers": 1, "width": 6},
    "linear2": {"layers": 2, "width": 4},
    "nonlinear1": {"layers": 1, "width": 4, "nonlinear": True},
}
_TWO = _MODELS["linear2"]
_SPECIAL: dict[str, tuple[str, Settings]] = {
    "reinforce-input": ("reinforce", {**_TWO, "baseline": "input"}),
    "nvil-normalized": ("nvil", {**_TWO, "normalize_variance": True}),
    "vimco-4": ("vimco", {**_TWO, "num_samples": 4}),
    "disarm-4": ("disarm", {**_TWO, "num_samples": 4}),
    "rebar-layer": ("rebar", {**_TWO, "rebar_scope": "layer"}),
    "rebar-bit": ("rebar", {**_MODELS["nonlinear1"], "rebar_scope": "bit"}),
    "relax-objective": ("relax", {**_TWO, "surrogate": "objective", "surrogate_context": "input"}),
    "relax-free": ("relax", {**_TWO, "surrogate": "free", "surrogate_depth": 2, "surrogate_activation": "silu"}),
    "dlax-objective": ("dlax", {**_TWO, "surrogate": "objective", "surrogate_activation": "tanh"}),
    "relax-structured": ("relax", {**_TWO, "task": "structured"}),
    "relax-pretrained": ("relax", {**_TWO, "pretrain_steps": 1, "freeze_at": 1, "track_variances": ("nvil", "rebar")}),
    "relax-twice": ("relax", {**_MODELS["linear1"], "samples_per_image": 2}),
}


def _vaes() -> Iterator[VaeCase]:
    cases = {f"{name}-{model}": (name, sizes) for name in VAE_ESTIMATORS for model, sizes in _MODELS.items()}
    for name, (estimator, settings) in (cases | _SPECIAL).items():
        yield VaeCase(
            name=f"vae/{name}",
            estimator=estimator,
            settings={**_NETWORK, **settings},
            steps=3 if settings is not _MODELS["linear1"] and "pretrain_steps" not in settings else 5,
        )
    for estimator in ("relax", "rebar", "disarm"):
        yield VaeCase(
            name=f"vae/{estimator}-two-workers",
            estimator=estimator,
            settings={**_NETWORK, **_TWO},
            workers=2,
            steps=3,
        )


TOY_ESTIMATORS = tuple(name for name in VAE_ESTIMATORS if name != "vimco")


def _toys() -> Iterator[ToyCase]:
    small: Settings = {"target": 0.45, "steps": 36, "seeds": 2, "lr": 0.02, "surrogate_lr": 0.03, "draws": 3}
    for name in TOY_ESTIMATORS:
        yield ToyCase(name=f"toy/{name}-bits", estimator=name, settings=small)
        yield ToyCase(name=f"toy/{name}-categories", estimator=name, settings=small, outcomes=3)
    for name in ("rebar", "relax"):
        independent = {**small, "coupling": "independent"}
        yield ToyCase(name=f"toy/{name}-bits-independent", estimator=name, settings=independent)


_COMPILED = {
    *("agents/a2c-plain", "agents/a2c-passes", "agents/a2c-value-replay", "agents/reinforce-plain"),
    *("agents/relax-plain", "agents/relax-plain-fixed-temperature", "agents/relax-passes-fixed-temperature"),
    *("agents/relax-fitted-fixed-temperature", "agents/lax-plain-fixed-temperature"),
    *("agents/marginal-fitted-fixed-temperature", "agents/marginal-passes-fixed-temperature"),
    *("vae/relax-linear1", "vae/rebar-linear1", "vae/nvil-linear2", "vae/disarm-linear1"),
}

CASES: dict[str, Case] = {
    case.name: replace(case, compiled=case.name in _COMPILED) for case in (*_agents(), *_vaes(), *_toys())
}
"""All of them, by name."""
