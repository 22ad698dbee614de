"""Every knob of the VAE experiment, with its meaning: the docstring under a field is its help on the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from relax_rl.config import did_you_mean
from relax_rl.errors import CheckpointError, SettingsError

__all__ = ["CHANGEABLE", "ESTIMATOR_NAMES", "VaeConfig", "check_resumable", "config_from_json"]

ESTIMATOR_NAMES = (
    "reinforce",
    "nvil",
    "rloo",
    "vimco",
    "simple-muprop",
    "muprop",
    "concrete",
    "straight-through",
    "straight-through-gumbel",
    "gumbel-rao",
    "reinmax",
    "dlax",
    "rebar",
    "relax",
    "arm",
    "disarm",
    "arms",
    "double-cv",
    "rodeo",
    "marginal",
    "enumerated",
)
"""The estimators of the registry that apply to layers of bits; spelled out so that help imports nothing heavy."""

CHANGEABLE = frozenset(
    {
        "steps",
        "freeze_at",
        "data_dir",
        "checkpoint_interval",
        "eval_samples",
        "early_stopping",
        "quiet",
        "threads",
        "compile",
    }
)
"""Settings that may differ when a run is resumed; all others would make it another run."""


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Train a sigmoid belief network and leave a run folder with its settings, curves, pictures and checkpoints."""

    data: Literal["mnist", "omniglot", "digits"] = "mnist"
    """Images: MNIST, Omniglot 28x28, or scikit-learn's 8x8 digits, which need no download."""
    data_dir: str | None = None
    """Folder with the data files; by default they are downloaded into the user's cache."""
    binarization: Literal["fixed", "dynamic"] = "fixed"
    """Pixels are binarised once, as published, or anew whenever an image is looked at."""
    task: Literal["generative", "structured"] = "generative"
    """Model images, or predict their lower half from the upper."""
    layers: int = 1
    """Layers of bits."""
    width: int = 200
    """Bits in each layer."""
    nonlinear: bool = False
    """Two tanh layers before each layer of logits."""
    hidden_width: int = 200
    """Units of those tanh layers."""
    wide_decoder: bool = False
    """With --nonlinear: a decoder's tanh layers are as wide as its output (784 before the pixels), as in the published code of RELAX."""
    estimator: str = "relax"
    """Gradient estimator: a name of the registry that applies to bits."""
    num_samples: int = 2
    """Samples K of the estimators that take several."""
    samples_per_image: int = 1
    """Times that each image of a batch is taken, with samples of its own each time: less noise in the gradients of encoder and decoder, with any estimator."""
    baseline: Literal["none", "moving-average", "input"] = "moving-average"
    """Baseline of reinforce."""
    normalize_variance: bool = False
    """nvil: divide the signal by max(1, its moving standard deviation)."""
    temperature: float = 0.5
    """Temperature of the relaxation; rebar, relax and dlax learn it from here."""
    num_conditional: int = 10
    """gumbel-rao: draws to average over."""
    rebar_scope: Literal["parameter", "layer", "bit"] = "parameter"
    """rebar: learned scales for each parameter tensor and one temperature, trained on the variance at the parameters; or one scale and one temperature for each layer, trained on the variance at the logits (layer); or that with f relaxed in one bit at a time, RELAX's default without r (bit)."""
    surrogate: Literal["corrected", "objective", "free"] = "corrected"
    """relax, dlax: c = eta f(sigma(z / temperature)) + r(z) as published (objective); with the other bits of the layer corrected to first order, so that each bit has a control of its own; or r(z) alone."""
    surrogate_context: Literal["input", "logits"] = "logits"
    """What r is given beside z: the input and the bits before the layer as published, or the layer's logits alone, which is cheaper."""
    surrogate_depth: int = 1
    """Hidden layers of r."""
    surrogate_width: int = 50
    """Units of each."""
    surrogate_activation: Literal["relu", "tanh", "silu"] = "relu"
    """Activation of r."""
    surrogate_decay: float = 1e-3
    """L2 decay of r's parameters."""
    lr: float = 1e-4
    """Learning rate of the model (Adam)."""
    lr_factor: float = 10.0
    """Learning rate of scales, temperatures and baselines over that of the model."""
    surrogate_lr_factor: float = 1.0
    """Learning rate of r over that of the model. Published: 1 or 10, whichever was better."""
    beta2: float = 0.99999
    """Adam's decay of squared gradients."""
    pretrain_steps: int = 0
    """Steps before the first in which only surrogate and baseline learn."""
    freeze_at: int | None = None
    """The model stops learning after this step; surrogate and baseline go on."""
    track_variances: tuple[str, ...] = ()
    """Estimators whose variance is measured on the same model, each with a surrogate or baseline of its own that learns along."""
    steps: int = 50_000
    """Steps of training."""
    batch_size: int = 24
    """Images in each step."""
    seed: int = 0
    """Seed of every random stream of the run."""
    preset: str = "none"
    """Settings of a row of the published tables, such as mnist-linear2-relax or mnist-linear2-relax-published, under the ones given."""
    run_dir: str | None = None
    """Folder of the run (default: runs/vae-DATA-MODEL-ESTIMATOR-sSEED-TIME)."""
    resume: str | None = None
    """Folder of a run to go on with; its settings are taken over, --steps may be raised."""
    early_stopping: int = 0
    """Stop once the validation bound has not risen for this many steps, and take the best model; 0 never stops early."""
    log_interval: int = 1_000
    """Steps between rows of progress.csv and points in TensorBoard."""
    valid_images: int = 2_000
    """Validation images behind the bound in each row (the same ones every time); 0 takes all."""
    checkpoint_interval: int = 10_000
    """Steps between checkpoints; one is always written at the end."""
    eval_samples: int = 100
    """Importance samples of the tighter bound in the evaluation at the end; 0 makes no evaluation."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    quiet: bool = False
    """Show no progress display."""
    threads: int = 1
    """CPU threads for tensor work; 0 takes all cores."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the gradients of a step on the CPU (needs g++, for which a first run waits): the same numbers to rounding, in half the time; auto does it for 30,000 steps or more."""
    device: str = "cpu"
    """Device of model and data: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        for name in [
            "layers",
            "width",
            "hidden_width",
            "num_samples",
            "samples_per_image",
            "num_conditional",
            "surrogate_depth",
            "surrogate_width",
            "steps",
            "batch_size",
            "log_interval",
            "checkpoint_interval",
        ]:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("pretrain_steps", "seed", "early_stopping", "valid_images", "eval_samples", "threads"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        for name in ("temperature", "lr", "lr_factor", "surrogate_lr_factor"):
            value = getattr(self, name)
            _require(value > 0.0 and math.isfinite(value), name, value, "above 0")
        _require(0.0 <= self.beta2 < 1.0, "beta2", self.beta2, "at least 0 and below 1")
        _require(0.0 <= self.surrogate_decay < math.inf, "surrogate_decay", self.surrogate_decay, "0 or above")
        _require(self.log_interval <= 1_000, "log_interval", self.log_interval, "at most 1000")
        if self.freeze_at is not None:
            _require(self.freeze_at >= 0, "freeze_at", self.freeze_at, "0 or above")
        if self.wide_decoder and not self.nonlinear:
            raise SettingsError("--wide-decoder widens the tanh layers, which --nonlinear makes: give both")
        for name in (self.estimator, *self.track_variances):
            if name not in ESTIMATOR_NAMES:
                raise SettingsError(
                    f"estimator {name!r} is unknown or not for bits, expected one of "
                    f"{', '.join(ESTIMATOR_NAMES)}{did_you_mean(name, ESTIMATOR_NAMES)}"
                )

    @property
    def architecture(self) -> str:
        """`linear1`, `nonlinear2-wide`, ..."""
        kind = "nonlinear" if self.nonlinear else "linear"
        return f"{kind}{self.layers}{'-wide' if self.wide_decoder else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, as written to `config.json`."""
        return asdict(self)


def config_from_json(saved: Any) -> VaeConfig:
    """The settings that `to_dict` gave, after a way through JSON.

    Raises:
        CheckpointError: they are none, or unknown to this version.
    """
    if not isinstance(saved, dict):
        raise CheckpointError("its settings are not a JSON object")
    hints = get_type_hints(VaeConfig)
    if unknown := sorted(saved.keys() - hints.keys()):
        raise CheckpointError(f"it has an unknown setting {unknown[0]!r}")
    values: dict[str, Any] = {}
    for name, value in saved.items():
        plain = type(getattr(VaeConfig, name, None))
        if plain is tuple and isinstance(value, list):
            value = tuple(map(str, value))
        elif plain is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif name == "freeze_at":
            plain = int if value is not None else type(None)
        elif plain is type(None):
            plain = str if value is not None else plain
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        if type(value) is not plain or (choices and value not in choices):
            raise CheckpointError(f"its setting {name} is {value!r}, expected {hints[name]}")
        values[name] = value
    try:
        return VaeConfig(**values)
    except SettingsError as error:
        raise CheckpointError(f"it has settings that this relax_rl cannot take: {error}") from None


def check_resumable(saved: VaeConfig, wanted: VaeConfig) -> None:
    """Refuse a resumption with settings that would make it another run.

    Raises:
        SettingsError: a setting outside `CHANGEABLE` differs.
    """
    for setting in fields(VaeConfig):
        old, new = getattr(saved, setting.name), getattr(wanted, setting.name)
        if old != new and setting.name not in CHANGEABLE | {"resume", "run_dir", "preset"}:
            raise SettingsError(
                f"{setting.name} is {new!r}, but the run to resume has {old!r}, and only "
                f"{', '.join(sorted(CHANGEABLE))} may change; start a new run instead"
            )


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value!r}, expected {expected}")
