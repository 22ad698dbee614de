"""The command `vae`: what a run leaves, exact resumption, what ends it, and one line for every mistake."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relax_rl.cli import main
from relax_rl.compute.serialization import load_state, save_state
from relax_rl.errors import CheckpointError, SettingsError, TrainingDiverged
from relax_rl.estimators import ESTIMATORS
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import Dataset
from relax_rl.experiments.vae import figures, training
from relax_rl.experiments.vae import session as sessions
from relax_rl.experiments.vae.config import ESTIMATOR_NAMES, VaeConfig
from relax_rl.experiments.vae.estimators import LAYERED
from relax_rl.experiments.vae.presets import preset_config, preset_names
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.experiments.vae.training import train_vae
from relax_rl.runs.callbacks import SaveCheckpoints
from relax_rl.runs.loggers import read_csv

SMALL = VaeConfig(
    layers=2,
    width=5,
    surrogate_depth=2,
    surrogate_width=6,
    lr=1e-2,
    steps=40,
    log_interval=10,
    checkpoint_interval=15,
    eval_samples=3,
    batch_size=4,
    valid_images=6,
    track_variances=("nvil", "rebar"),
    tensorboard=False,
    quiet=True,
)


@pytest.fixture(autouse=True)
def small_data(tmp_path, monkeypatch):
    """Twelve-pixel images instead of a data set, and a working folder for every test."""
    images = np.random.default_rng(0).integers(0, 2, (30, 12), dtype=np.uint8)
    data = Dataset("stripes", images[:14], images[14:22], images[22:], shape=(4, 3), dynamic=False)
    monkeypatch.setattr(sessions, "load_data", lambda *_, **__: data)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Curves take longer than the runs here: only the test of what a run leaves draws them."""
    if request.function is not test_what_a_run_leaves:
        monkeypatch.setattr(training, "draw_curves", lambda *_: None)


def train(**changes):
    return train_vae(replace(SMALL, **changes))


def last_state(run: str | Path):
    newest = max((Path(run) / "checkpoints").glob("step_*.safetensors"))
    return load_state(newest)


def assert_same_run(one: str, other: str) -> None:
    """All tensors, counters and rows but for the time they took."""
    (tensors, state), (others, other_state) = last_state(one), last_state(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert state["vae"] == other_state["vae"] and state["run"]["best_bound"] == other_state["run"]["best_bound"]
    rows, other_rows = (read_csv(Path(run) / "progress.csv") for run in (one, other))
    rows.pop("seconds"), other_rows.pop("seconds")
    assert str(rows) == str(other_rows)


def test_what_a_run_leaves():
    result = train(run_dir="run", tensorboard=True)
    assert result.steps == 40 and result.stopped_by == "steps"
    rows = read_csv(Path("run/progress.csv"))
    assert list(rows)[:5] == ["step", "seconds", "train_bound", "log_variance", "valid_bound"]
    assert {"log_variance/nvil", "log_variance/rebar", "temperature/1", "eta/2"} <= set(rows)
    assert rows["step"] == [10, 20, 30, 40]
    assert all(math.isfinite(value) for name in ("train_bound", "valid_bound", "log_variance") for value in rows[name])
    for name in ("learning_curve.png", "images.png"):
        assert Path("run", name).read_bytes().startswith(b"\x89PNG")
    assert list(Path("run").glob("events.out.tfevents.*"))
    config = json.loads(Path("run/config.json").read_text())
    assert config["vae"]["layers"] == 2 and config["data"] == "stripes"
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    names = {f"{part}_bound_{k}" for part in ("valid", "test") for k in (1, 3)} | {"train_bound_1"}
    assert evaluation["bounds"].keys() == names and evaluation["data"] == "stripes"
    assert all(-30 < value < 0 for value in evaluation["bounds"].values())
    assert [path.name for path in sorted(Path("run/checkpoints").iterdir())] == [
        "step_000000030.safetensors",
        "step_000000040.safetensors",
    ]


def test_the_training_bound_is_the_mean_since_the_row_before():
    seen = []
    original = Trainer.take_step

    def watching(trainer):
        original(trainer)
        seen.append(trainer._loss.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", watching)
        train(run_dir="run", steps=20)
    rows = read_csv(Path("run/progress.csv"))
    assert rows["train_bound"] == pytest.approx([-seen[9] / 10, -seen[19] / 10], rel=1e-5)


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_never_stopped():
    train(run_dir="whole")
    train(run_dir="parts", steps=20)
    train(run_dir=None, resume="parts", steps=40)
    assert_same_run("whole", "parts")
    assert len(json.loads(Path("parts/config.json").read_text())["resumed"]) == 1


def test_a_run_that_was_stopped_in_its_evaluation_is_evaluated_when_resumed(monkeypatch):
    train(run_dir="whole", steps=35)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_evaluate", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(run_dir="parts", steps=35)
    result = train(run_dir=None, resume="parts", steps=35)
    assert result.steps == 35 and result.stopped_by == "steps"
    assert_same_run("whole", "parts")
    whole, parts = (json.loads(Path(run, "evaluation.json").read_text()) for run in ("whole", "parts"))
    assert whole["bounds"] == parts["bounds"]
    with pytest.raises(SettingsError, match="already taken 35 of 35 steps"):
        train(run_dir=None, resume="parts", steps=35)


def test_a_run_that_was_killed_after_its_last_checkpoint_has_the_row_of_its_last_step(monkeypatch):
    """Step 35 is due for a checkpoint and not for a row, which has to be there before."""
    train(run_dir="whole", steps=35, checkpoint_interval=35)
    save, saved = SaveCheckpoints.save, []

    def killed(self):
        saved.append(save(self))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SaveCheckpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run_dir="parts", steps=35, checkpoint_interval=35)
    assert len(saved) == 1 and read_csv(Path("parts/progress.csv"))["step"][-1] == 35
    train(run_dir=None, resume="parts", steps=35)
    assert_same_run("whole", "parts")


@pytest.mark.parametrize("name", ["nvil", "muprop", "rebar", "rodeo", "double-cv", "disarm", "concrete"])
def test_every_kind_of_estimator_resumes_exactly(name):
    options = {"estimator": name, "track_variances": (), "eval_samples": 0, "pretrain_steps": 3}
    train(run_dir="whole", **options)
    train(run_dir="parts", **{**options, "steps": 20})
    train(resume="parts", **options)
    assert_same_run("whole", "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(number, monkeypatch):
    train(run_dir="whole")
    original = Trainer.take_step

    def interrupted(trainer):
        original(trainer)
        if trainer.step == 23:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", interrupted)
        result = train(run_dir="stopped")
    assert result.stopped_by == number.name and result.steps == 23 and result.evaluation is None
    train(resume="stopped")
    assert_same_run("whole", "stopped")


def test_what_is_not_a_number_ends_the_run_and_the_last_good_checkpoint_is_named(monkeypatch):
    original = Trainer.take_step

    def spoiled(trainer):
        original(trainer)
        if trainer.step == 33:
            with torch.no_grad():
                trainer.model.decoders[0].biases[0][0] = math.nan

    monkeypatch.setattr(Trainer, "take_step", spoiled)
    with pytest.raises(TrainingDiverged, match=r"step_000000030\.safetensors"):
        train(run_dir="run")
    tensors, _ = last_state("run")
    assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("model/"))


def test_the_model_stops_at_freeze_at_and_the_surrogates_go_on():
    train(run_dir="short", steps=20)
    train(run_dir="frozen", freeze_at=20)
    (before, _), (after, _) = last_state("short"), last_state("frozen")
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        if name.startswith("model/"):
            assert same, name
        if name.endswith(("residuals.0.of_z", "network.weight")) and "optimizer" not in name:
            assert not same, name


def test_pretraining_moves_the_surrogate_alone(monkeypatch):
    starts = {}
    original = Trainer.take_step

    def watching(trainer):
        if trainer.step in (-5, 0):
            starts[trainer.step] = {name: tensor.clone() for name, tensor in trainer.state_dict()[0].items()}
        original(trainer)

    monkeypatch.setattr(Trainer, "take_step", watching)
    train(run_dir="run", pretrain_steps=5)
    for name, tensor in starts[-5].items():
        if name.startswith("model/"):
            assert torch.equal(tensor, starts[0][name]), name
    assert not torch.equal(starts[-5]["main/estimator/eta"], starts[0]["main/estimator/eta"])
    assert read_csv(Path("run/progress.csv"))["step"] == [10, 20, 30, 40]


def test_estimators_that_watch_do_not_touch_the_model():
    train(run_dir="alone", track_variances=())
    train(run_dir="watched")
    (alone, _), (watched, _) = last_state("alone"), last_state("watched")
    for name, tensor in alone.items():
        assert torch.equal(tensor, watched[name]), name


def test_early_stopping_takes_the_best_model(monkeypatch):
    fake = iter([-9.0, -5.0, -6.0, -7.0, -8.0])
    real = training.bound
    monkeypatch.setattr(
        training, "bound", lambda model, x, **k: next(fake) if x.shape[0] == 6 and not k else real(model, x, **k)
    )
    result = train(run_dir="run", steps=500, early_stopping=20)
    assert result.stopped_by == "early stopping" and result.steps == 40
    assert result.evaluation is not None and result.evaluation["step"] == 20
    _, state = load_state("run/checkpoints/best.safetensors")
    assert state["vae"]["step"] == 20


def test_a_damaged_checkpoint_is_passed_over():
    train(run_dir="run")
    newest = Path("run/checkpoints/step_000000040.safetensors")
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="damaged"):
        result = train(resume="run", steps=50)
    assert result.steps == 50 and newest.with_name(f"{newest.name}.damaged").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.5), ("seed", 3), ("batch_size", 8), ("track_variances", ["nvil"])]
)
def test_settings_that_were_changed_in_the_file_are_told(name, value):
    train(run_dir="run", steps=20)
    path = Path("run/config.json")
    record = json.loads(path.read_text())
    before, record["vae"][name] = record["vae"][name], value
    path.write_text(json.dumps(record))
    given = {name: tuple(value) if isinstance(value, list) else value}
    with pytest.raises(CheckpointError, match=f"{name} is .* in run/.*safetensors, but .* in config.json") as error:
        train(resume="run", steps=40, **given)
    assert str(before) in str(error.value) and "\n" not in str(error.value)


def test_other_settings_or_other_data_cannot_be_resumed(monkeypatch):
    train(run_dir="run")
    with pytest.raises(SettingsError, match="width is 6"):
        train(resume="run", width=6, steps=50)
    with pytest.raises(SettingsError, match="raise --steps"):
        train(resume="run")
    data = sessions.load_data()
    monkeypatch.setattr(sessions, "load_data", lambda *_, **__: replace(data, name="dots"))
    with pytest.raises(CheckpointError, match="trained on stripes"):
        train(resume="run", steps=50)
    with pytest.raises(SettingsError, match="already holds a run"):
        train(run_dir="run")


def test_several_samples_of_an_image_are_a_batch_that_holds_it_as_often():
    def trained(config: VaeConfig, times: int) -> Trainer:
        batches = Batches(sessions.load_data().train, seed=0)
        draw = batches.next
        batches.next = lambda size: draw(size).repeat_interleave(times, 0)
        trainer = Trainer(config, torch.full((12,), 0.4), batches)
        for _ in range(5):
            trainer.take_step()
        return trainer

    asked = trained(replace(SMALL, samples_per_image=3), 1)
    by_hand = trained(SMALL, 3)
    once = trained(SMALL, 1)
    assert asked.take_train_bound() == by_hand.take_train_bound()
    for p, q, r in zip(asked.model.parameters(), by_hand.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


def test_structured_prediction_and_nonlinear_models_train():
    result = train(run_dir="run", task="structured", nonlinear=True, wide_decoder=True, hidden_width=4)
    assert result.evaluation is not None and result.evaluation["model"] == "nonlinear2-wide"


ARGS = ["--width", "5", "--steps", "20", "--log-interval", "10", "--batch-size", "4", "--surrogate-width", "4"]


def test_the_command_line(capsys):
    assert main(["vae", *ARGS, "--run-dir", "run", "--estimator", "rebar", "--no-tensorboard"]) == 0
    out = capsys.readouterr().out
    assert "all steps taken: 20 steps" in out and "100 importance samples" in out and "images.png" in out
    assert main(["vae", "--resume", "run", "--steps", "30"]) == 0
    assert "resumed at step 20" in capsys.readouterr().out
    shutil.rmtree("run")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--estimator", "lax"], "unknown or not for bits"),
        (["--estimator", "relaxx"], "did you mean relax"),
        (["--layers", "0"], "layers is 0, expected at least 1"),
        (["--log-interval", "2000"], "at most 1000"),
        (["--wide-decoder"], "--nonlinear"),
        (["--preset", "mnist-linear3-relax"], "unknown preset"),
        (["--resume", "nowhere"], "does not exist"),
        (["--track-variances", "lax"], "unknown or not for bits"),
        (["--lr", "nan"], "lr is nan"),
        (["--stepps", "3"], "did you mean --steps"),
        (["--estimator", "disarm", "--num-samples", "3"], "even number"),
        (["--estimator", "enumerated"], "out of reach"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys):
    assert main(["vae", *args, "--run-dir", "run"] if "--resume" not in args else ["vae", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err
    assert not Path("run").exists()


def test_presets_are_the_rows_of_the_tables():
    config = preset_config("omniglot-nonlinear-wide-double-cv")
    assert (config.data, config.layers, config.nonlinear, config.wide_decoder) == ("omniglot", 1, True, True)
    assert config.estimator == "double-cv" and config.num_samples == 3 and config.batch_size == 24
    assert preset_config("mnist-linear2-relax").layers == 2
    assert preset_config("mnist-linear1-rebar-corrected").rebar_scope == "bit"
    published = preset_config("mnist-linear2-relax-published")
    assert (published.estimator, published.surrogate, published.num_samples) == ("relax", "objective", 5)
    assert (published.surrogate_context, published.surrogate_depth, published.pretrain_steps) == ("input", 4, 1000)
    assert all(preset_config(name).preset == name for name in preset_names())


def test_the_names_of_the_estimators_are_those_of_the_registry():
    assert set(ESTIMATOR_NAMES) == set(LAYERED) <= set(ESTIMATORS)


@pytest.mark.parametrize("task", ["generative", "structured"])
@pytest.mark.parametrize("shape", [(4, 3), (28, 28)])
def test_the_rows_of_the_images_are_named(task, shape, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write_figure", lambda path, figure: drawn.append(figure))
    model = SigmoidBeliefNetwork(torch.full((math.prod(shape),), 0.5), layers=(3,), task=task)
    picture = figures.draw_images(model, torch.ones(12, math.prod(shape)), shape)
    figures.write_images(picture, Path("images.png"), figures.image_rows(task), "title")
    (figure,) = drawn
    figure.draw_without_rendering()
    (axes,) = figure.axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert len(named) == 4 and named[0] == "validation images"
    assert named[1] == ("lower half predicted" if task == "structured" else "reconstructed")
    box, (width, height) = axes.get_tightbbox(), figure.bbox.size
    assert width >= 1000 and box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
    assert axes.get_window_extent().width > 0.7 * width


@pytest.mark.parametrize("rows", [1, 300])
def test_curves_of_any_number_of_rows(rows, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write_figure", lambda path, figure: drawn.append(figure))
    lines = [f"{i},1,{-100 - 100 / i},{'' if rows == 1 else 5},{-99 - 100 / i}" for i in range(1, rows + 1)]
    Path("progress.csv").write_text("\n".join(["step,seconds,train_bound,log_variance,valid_bound", *lines, ""]))
    figures.draw_curves(Path("progress.csv"), Path("curve.png"), "title", "relax")
    bounds, variances = drawn[0].axes
    assert bounds.get_xlim() == variances.get_xlim() == (0, 1.02 * rows)
    assert [text.get_text() for text in variances.texts] == ([] if rows > 1 else ["no variance has been measured yet"])
    if rows > 1:  # the first rows lie so far below that the rest would be flat
        low, high = bounds.get_ylim()
        assert -110 < low < -100 and -99.4 < high < -98


def test_a_run_that_is_told_to_be_quiet_says_one_line(capsys):
    assert main(["vae", "--width", "5", "--steps", "2", "--eval-samples", "0", "--quiet", "--run-dir", "r"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1 and out.startswith("all steps taken: 2 steps") and out.endswith(" · r\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", math.inf),
        ("seconds", 10**400),
        ("best_bound", math.nan),
        ("best_step", math.inf),
        ("best_step", 0.5),
    ],
    ids=lambda part: str(part)[:10],
)
def test_a_state_of_the_run_that_is_none_is_told(name, value):
    train(run_dir="run")
    path = Path("run/checkpoints/step_000000040.safetensors")
    tensors, state = load_state(path)
    state["run"][name] = value
    save_state(path, tensors, state)
    with pytest.raises(CheckpointError, match="the state of its run cannot be read"):
        train(resume="run", steps=50)
    state["run"] = load_state(Path("run/checkpoints/step_000000030.safetensors"))[1]["run"]
    save_state(path, tensors, {**state, "vae": {**state["vae"], "step": 10**400}})
    with pytest.raises(CheckpointError, match=r"step is 1000.*expected a whole number"):
        train(resume="run", steps=50)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
@pytest.mark.parametrize("found", ["pipe", "hole", '{"evaluated_at": 1e999}', "[" * 100_000])
def test_an_evaluation_that_cannot_be_read_is_made_again(found):
    train(run_dir="run")
    path = Path("run/evaluation.json")
    path.unlink()
    if found == "pipe":
        os.mkfifo(path)
    elif found == "hole":
        with open(path, "wb") as file:
            file.truncate(2**36)
    else:
        path.write_text(found)
    assert train(resume="run").evaluation["evaluated_at"] == 40 and "evaluated_at" in path.read_text()


@pytest.mark.parametrize(
    "changed", [{"width": 2**14}, {"surrogate_width": 2**14}, {"nonlinear": True, "hidden_width": 2**14, "layers": 64}]
)
def test_no_memory_is_given_to_layers_that_the_checkpoint_does_not_hold(changed, monkeypatch):
    train(run_dir="run", track_variances=("relax",))
    record = json.loads(Path("run/config.json").read_text())
    record["vae"] |= changed
    Path("run/config.json").write_text(json.dumps(record))
    for path in Path("run/checkpoints").iterdir():  # those of earlier versions hold no settings
        tensors, state = load_state(path)
        save_state(path, tensors, {name: part for name, part in state.items() if name != "settings"})
    monkeypatch.setattr(sessions, "Trainer", None)  # nothing is made
    with pytest.raises(CheckpointError, match=r"belongs to a run with other settings: .*width is 16384, for which the"):
        train_vae(VaeConfig(**{**vars(SMALL), **changed, "resume": "run", "track_variances": ("relax",), "steps": 50}))


def test_early_stopping_that_begins_on_a_resumption_looks_for_a_best_of_its_own():
    train(run_dir="run", steps=20, lr=1e-30)
    result = train(resume="run", steps=200, lr=1e-30, early_stopping=20)
    assert result.stopped_by == "early stopping" and result.evaluation is not None
    _, state = load_state("run/checkpoints/best.safetensors")
    assert result.evaluation["step"] == state["vae"]["step"] > 20


def test_the_best_model_is_evaluated_where_steps_run_out_under_early_stopping(monkeypatch):
    fake = iter([-9.0, -5.0, -6.0, -7.0])
    real = training.bound
    monkeypatch.setattr(
        training, "bound", lambda model, x, **k: next(fake) if x.shape[0] == 6 and not k else real(model, x, **k)
    )
    result = train(run_dir="run", steps=40, early_stopping=500)
    assert result.stopped_by == "steps" and result.evaluation is not None and result.evaluation["step"] == 20
    monkeypatch.setattr(training, "bound", real)
    again = train(run_dir="other", steps=20)
    assert again.evaluation is not None and again.evaluation["bounds"] == result.evaluation["bounds"]


def test_another_preset_cannot_be_resumed(capsys):
    train(run_dir="run", steps=20)
    assert main(["vae", "--resume", "run", "--preset", "mnist-linear2-rebar", "--steps", "30"]) == 2
    assert capsys.readouterr().err.startswith("error: --preset is 'mnist-linear2-rebar'")


def test_a_damaged_best_model_does_not_keep_a_run_from_going_on():
    train(run_dir="run", steps=40, early_stopping=500)
    best = Path("run/checkpoints/best.safetensors")
    best.write_bytes(best.read_bytes()[:100])
    assert train(resume="run", steps=60).steps == 60
