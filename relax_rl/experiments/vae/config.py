"""Every knob of the VAE experiment, with its meaning: the docstring under a field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.settings.config import TrackerName, all_own
from relax_rl.settings.fields import check, setting

__all__ = ["ESTIMATOR_NAMES", "VaeConfig"]

ESTIMATOR_NAMES = (
    *("reinforce", "nvil", "rloo", "vimco", "simple-muprop", "muprop", "concrete", "straight-through"),
    *("straight-through-gumbel", "gumbel-rao", "reinmax", "dlax", "rebar", "relax", "arm", "disarm", "arms"),
    *("double-cv", "rodeo", "marginal", "enumerated"),
)
"""The estimators of the registry that apply to layers of bits; spelled out so that help imports nothing heavy."""


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Train a sigmoid belief network and leave a run folder with its settings, curves, pictures and checkpoints."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "what everyone sets": "data estimator preset layers steps seed run_dir resume device",
        "data": "data_dir binarization task",
        "model": "width nonlinear hidden_width wide_decoder",
        "estimator": (
            "num_samples samples_per_image baseline normalize_variance temperature num_conditional rebar_scope "
            "track_variances"
        ),
        "surrogate": (
            "surrogate surrogate_context surrogate_depth surrogate_width surrogate_activation surrogate_decay "
            "surrogate_lr_factor"
        ),
        "optimisation": "lr lr_factor beta2 batch_size pretrain_steps freeze_at early_stopping",
        "evaluation": "valid_images eval_samples",
        "output": "log_interval checkpoint_interval tensorboard track track_project logger quiet",
        "hardware": "threads compile",
    }

    data: Literal["mnist", "omniglot", "digits"] = "mnist"
    """Images: MNIST, Omniglot 28x28, or scikit-learn's 8x8 digits, which need no download."""
    data_dir: str | None = setting(None, resumable=True)
    """Folder with the data files; by default they are downloaded into the user's cache."""
    binarization: Literal["fixed", "dynamic"] = "fixed"
    """Pixels are binarised once, as published, or anew whenever an image is looked at."""
    task: Literal["generative", "structured"] = "generative"
    """Model images, or predict their lower half from the upper."""
    layers: int = setting(1, least=1, cap=64)
    """Layers of bits."""
    width: int = setting(200, least=1, cap=2**14)
    """Bits in each layer."""
    nonlinear: bool = False
    """Two tanh layers before each layer of logits."""
    hidden_width: int = setting(200, least=1, cap=2**14)
    """Units of those tanh layers."""
    wide_decoder: bool = False
    """With --nonlinear: a decoder's tanh layers are as wide as its output (784 before the pixels), as in the published code of RELAX."""
    estimator: str = "relax"
    """Gradient estimator: a name of the registry that applies to bits."""
    num_samples: int = setting(2, least=1, cap=2**12)
    """Samples K of the estimators that take several."""
    samples_per_image: int = setting(1, least=1, cap=2**12)
    """Times that each image of a batch is taken, with samples of its own each time: less noise in the gradients of encoder and decoder, with any estimator."""
    baseline: Literal["none", "moving-average", "input"] = "moving-average"
    """Baseline of reinforce."""
    normalize_variance: bool = False
    """nvil: divide the signal by max(1, its moving standard deviation)."""
    temperature: float = setting(0.5, above=0.0)
    """Temperature of the relaxation; rebar, relax and dlax learn it from here."""
    num_conditional: int = setting(10, least=1, cap=2**12)
    """gumbel-rao: draws to average over."""
    rebar_scope: Literal["parameter", "layer", "bit"] = "parameter"
    """rebar: learned scales for each parameter tensor and one temperature, trained on the variance at the parameters; or one scale and one temperature for each layer, trained on the variance at the logits (layer); or that with f relaxed in one bit at a time, RELAX's default without r (bit)."""
    surrogate: Literal["corrected", "objective", "free"] = "corrected"
    """relax, dlax: c = eta f(sigma(z / temperature)) + r(z) as published (objective); with the other bits of the layer corrected to first order, so that each bit has a control of its own; or r(z) alone."""
    surrogate_context: Literal["input", "logits"] = "logits"
    """What r is given beside z: the input and the bits before the layer as published, or the layer's logits alone, which is cheaper."""
    surrogate_depth: int = setting(1, least=1, cap=64)
    """Hidden layers of r."""
    surrogate_width: int = setting(50, least=1, cap=2**14)
    """Units of each."""
    surrogate_activation: Literal["relu", "tanh", "silu"] = "relu"
    """Activation of r."""
    surrogate_decay: float = setting(1e-3, least=0.0)
    """L2 decay of r's parameters."""
    lr: float = setting(1e-4, above=0.0, cap=1e3)
    """Learning rate of the model (Adam)."""
    lr_factor: float = setting(10.0, above=0.0)
    """Learning rate of scales, temperatures and baselines over that of the model."""
    surrogate_lr_factor: float = setting(1.0, above=0.0)
    """Learning rate of r over that of the model. Published: 1 or 10, whichever was better."""
    beta2: float = setting(0.99999, least=0.0, below=1.0)
    """Adam's decay of squared gradients."""
    pretrain_steps: int = setting(0, least=0)
    """Steps before the first in which only surrogate and baseline learn."""
    freeze_at: int | None = setting(None, least=0, resumable=True)
    """The model stops learning after this step; surrogate and baseline go on."""
    track_variances: tuple[str, ...] = ()
    """Estimators whose variance is measured on the same model, each with a surrogate or baseline of its own that learns along."""
    steps: int = setting(50_000, least=1, resumable=True)
    """Steps of training."""
    batch_size: int = setting(24, least=1, cap=2**20)
    """Images in each step."""
    seed: int = setting(0, least=0, cap=2**63 - 1)
    """Seed of every random stream of the run."""
    preset: str = "none"
    """Settings of a row of the published tables, such as mnist-linear2-relax or mnist-linear2-relax-published, under the ones given."""
    run_dir: str | None = setting(None, of_the_call=True)
    """Folder of the run (default: runs/vae-DATA-MODEL-ESTIMATOR-sSEED-TIME)."""
    resume: str | None = setting(None, of_the_call=True)
    """Folder of a run to go on with; its settings are taken over, --steps may be raised."""
    early_stopping: int = setting(0, least=0, resumable=True)
    """Stop once the validation bound has not risen for this many steps, and take the best model; 0 never stops early."""
    log_interval: int = setting(1_000, least=1, most=1_000, expected="at least 1 and at most 1000")
    """Steps between rows of progress.csv and points in TensorBoard."""
    valid_images: int = setting(2_000, least=0)
    """Validation images behind the bound in each row (the same ones every time); 0 takes all."""
    checkpoint_interval: int = setting(10_000, least=1, resumable=True)
    """Steps between checkpoints; one is always written at the end."""
    eval_samples: int = setting(100, least=0, cap=1_000_000, resumable=True)
    """Importance samples of the tighter bound in the evaluation at the end; 0 makes no evaluation."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    track: tuple[TrackerName, ...] = setting((), resumable=True)
    """Trackers that get the run's numbers too, one or more: each needs the extra of its name; none if none is named."""
    track_project: str | None = setting(None, fits=bool, expected="the name of a project, or nothing", resumable=True)
    """Project of the trackers, the experiment in MLflow (default: vae-DATA); the run is called as its folder."""
    logger: tuple[str, ...] = setting((), fits=all_own, expected="module:factory", of_the_call=True)
    """Loggers of your own: module:factory, called with the VaeConfig; a run that is gone on with has to be told of them again."""
    quiet: bool = setting(False, resumable=True, of_the_call=True)
    """Show no progress: what came of the run, in one line, and errors alone are told."""
    threads: int = setting(1, least=0, cap=1_024, resumable=True)
    """CPU threads for tensor work; 0 takes all cores."""
    compile: Literal["auto", "on", "off"] = setting("auto", resumable=True)
    """Compile the gradients of a step on the CPU (needs g++, for which a first run waits): the same numbers to rounding, in half the time; auto does it for 30,000 steps or more."""
    device: str = "cpu"
    """Device of model and data: cpu, cuda, cuda:1, mps, or auto."""

    def __post_init__(self) -> None:
        check(self)
        if self.wide_decoder and not self.nonlinear:
            raise SettingsError("--wide-decoder widens the tanh layers, which --nonlinear makes: give both")
        if len(set(self.track_variances)) < len(self.track_variances):
            raise SettingsError(f"track_variances are {' '.join(self.track_variances)}, expected each estimator once")
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
