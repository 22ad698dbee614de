"""VAEs trained by several processes: the same steps as by one, one run folder, resumption by any number of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relax_rl.compute import distributed
from relax_rl.compute.serialization import load_state
from relax_rl.errors import SettingsError, WorkerLost
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import Dataset, load_data
from relax_rl.experiments.vae import session as sessions
from relax_rl.experiments.vae import training
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.noise import Noise, own_rows
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.experiments.vae.training import train_vae
from relax_rl.runs.loggers import read_csv
from tests.workers import run_workers

SMALL = VaeConfig(
    data="digits",
    layers=2,
    width=12,
    surrogate_width=10,
    num_samples=2,
    lr=1e-2,
    batch_size=6,
    log_interval=10,
    checkpoint_interval=10,
    eval_samples=3,
    valid_images=10,
    tensorboard=False,
    quiet=True,
    compile="off",
)
UPDATES = 20
CASES: dict[str, dict[str, Any]] = {
    "relax": {"estimator": "relax", "pretrain_steps": 5, "track_variances": ("nvil", "rebar")},
    "relax-published": {"estimator": "relax", "surrogate": "objective", "surrogate_context": "input"},
    "rebar": {"estimator": "rebar", "track_variances": ("relax", "muprop")},
    "nvil": {"estimator": "nvil", "normalize_variance": True, "track_variances": ("vimco", "gumbel-rao")},
    "disarm": {"estimator": "disarm", "track_variances": ("arm", "arms", "reinmax")},
    "rodeo": {"estimator": "rodeo", "lr": 1e-3, "track_variances": ("double-cv", "rloo", "concrete")},
    "twice": {"estimator": "relax", "samples_per_image": 2},
    "dynamic": {"estimator": "dlax", "binarization": "dynamic"},
}


def learned(case: str, data: Dataset, workers: distributed.Workers) -> dict[str, np.ndarray]:
    """What a trainer is after some updates, and the bound of its batches."""
    config = replace(SMALL, **CASES[case])
    dynamic = config.binarization == "dynamic"
    mean = torch.from_numpy(data.mean_image.copy())
    trainer = Trainer(config, mean, Batches(data.train, dynamic=dynamic, seed=0), "cpu", workers)
    # Away from the start, where gradients cancel exactly: Adam's first step would make whole steps of their rounding.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    while trainer.step < UPDATES:
        trainer.take_step()
    bound = trainer.take_train_bound()
    tensors, counters = trainer.state_dict()
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    return {**arrays, "bound": np.array(bound), "metrics": np.array(list(trainer.metrics().values())), **counters}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def together(data: Dataset) -> list[dict[str, dict[str, np.ndarray]]]:
    def learn_all(rank: int) -> dict[str, dict[str, np.ndarray]]:
        with distributed.joined(timeout=60.0) as workers:
            return {case: learned(case, data, workers) for case in CASES}

    answers = run_workers(2, learn_all)
    assert [kind for kind, _ in answers] == ["done", "done"], answers
    return [found for _, found in answers]


def parts_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All parameters of a network as one vector, all first and all second moments of an optimiser, and so on."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, x in arrays.items():
        key = name if "generator" in name else name.split(".")[0].removesuffix("/eta")
        for kind in ("mean", "square"):
            key += f" {kind}" if f".{kind}." in name or f"variance/{kind}" in name else ""
        parts.setdefault(key, []).append(np.asarray(x).ravel())
    return {key: np.concatenate(found).astype(np.float64) for key, found in parts.items()}


@pytest.mark.parametrize("case", CASES)
def test_two_workers_take_the_steps_of_a_single_one(case: str, data: Dataset, together: Any) -> None:
    expected, found = parts_of(learned(case, data, distributed.ALONE)), parts_of(together[0][case])
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if "generator" in name:
            np.testing.assert_array_equal(found[name], x, name)
        else:
            # What an optimiser remembers is of gradients in which larger numbers cancel.
            close = 2e-4 if "optimizer" in name else 1e-5
            assert np.linalg.norm(found[name] - x) <= close * np.linalg.norm(x), name


@pytest.mark.parametrize("case", CASES)
def test_the_workers_are_the_same_bit_for_bit(case: str, together: Any) -> None:
    first, second = (found[case] for found in together)
    for name, x in first.items():
        np.testing.assert_array_equal(second[name], x, name)


def test_every_row_gets_the_noise_that_it_would_get_alone() -> None:
    def drawn(workers: distributed.Workers, rows: int) -> list[torch.Tensor]:
        noise = Noise(torch.Generator().manual_seed(0), workers)
        drawn = [*noise.logistic((3, rows), (2, 4)), *noise.signs((rows,), (2,))]
        return [*drawn, noise.uniform((2, 1, rows, 5), torch.float64)]

    alone = drawn(distributed.ALONE, 6)
    for rank in range(2):
        workers = distributed.Workers()
        workers.rank, workers.count = rank, 2
        for mine, whole in zip(drawn(workers, 3), alone, strict=True):
            assert torch.equal(mine, whole[..., 3 * rank : 3 * rank + 3, :])
        assert torch.equal(own_rows(alone[0][0], workers), alone[0][0, 3 * rank : 3 * rank + 3])


# Runs


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve-pixel images, no curves, and a working folder: for every process, as they are forked."""
    images = np.random.default_rng(0).integers(0, 2, (30, 12), dtype=np.uint8)
    stripes = Dataset("stripes", images[:14], images[14:22], images[22:], shape=(4, 3), dynamic=False)
    monkeypatch.setattr(sessions, "load_data", lambda *_, **__: stripes)
    monkeypatch.setattr(training, "draw_curves", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def run_together(**changes: Any) -> list[tuple[str, Any]]:
    def work(_: int) -> tuple[int, str, bool]:
        result = train_vae(replace(SMALL, **changes))
        return result.steps, result.stopped_by, result.evaluation is None

    return run_workers(2, work)


def assert_close_runs(one: str, other: str) -> None:
    """All tensors and rows to rounding."""
    newest = [max(Path(run, "checkpoints").glob("step_*.safetensors")) for run in (one, other)]
    (tensors, state), (others, other_state) = (load_state(path) for path in newest)
    assert tensors.keys() == others.keys() and state["vae"] == other_state["vae"]
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-6)
    rows, other_rows = (read_csv(Path(run, "progress.csv")) for run in (one, other))
    assert rows.keys() == other_rows.keys() and rows["step"] == other_rows["step"] == [10, 20, 30]
    np.testing.assert_allclose(rows["train_bound"], other_rows["train_bound"], rtol=1e-4)
    np.testing.assert_allclose(rows["valid_bound"], other_rows["valid_bound"], rtol=1e-4)


def test_a_run_goes_on_with_another_number_of_workers(small_data: None) -> None:
    # Without a prior, whose gradients cancel exactly at the start.
    train_vae(replace(SMALL, task="structured", run_dir="whole", steps=30))
    assert run_together(task="structured", run_dir="parts", steps=10) == [
        ("done", (10, "steps", False)),
        ("done", (10, "steps", True)),
    ]
    train_vae(replace(SMALL, task="structured", resume="parts", run_dir=None, steps=20))
    answers = run_together(task="structured", resume="parts", run_dir=None, steps=30)
    assert answers == [("done", (30, "steps", False)), ("done", (30, "steps", True))]
    assert_close_runs("whole", "parts")
    assert len(json.loads(Path("parts/config.json").read_text())["resumed"]) == 2
    bounds = [json.loads(Path(run, "evaluation.json").read_text())["bounds"] for run in ("whole", "parts")]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(small_data: None) -> None:
    answers = run_together(run_dir="run", steps=10, batch_size=5)
    assert [kind for kind, _ in answers] == ["raised", "raised"]
    assert all(isinstance(error, SettingsError) and "a multiple of 2" in str(error) for _, error in answers)
    assert [error.already_printed for _, error in answers].count(False) == 1
    assert not Path("run").exists()


def test_a_lost_worker_ends_the_run_and_the_last_checkpoint_is_named(
    small_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbling(rank: int) -> None:
        original = Trainer.take_step

        def take_step(trainer: Trainer) -> None:
            if rank == 1 and trainer.step == 15:
                raise ValueError("the disk is gone")
            original(trainer)

        monkeypatch.setattr(Trainer, "take_step", take_step)
        train_vae(replace(SMALL, run_dir="run", steps=30))

    (kind, error), (other_kind, other) = run_workers(2, stumbling)
    assert (kind, other_kind) == ("raised", "raised") and isinstance(other, ValueError)
    assert isinstance(error, WorkerLost)
    assert "the disk is gone" in str(error) and "step_000000010.safetensors; go on with --resume run" in str(error)
    assert run_together(resume="run", run_dir=None, steps=20)[0] == ("done", (20, "steps", False))


def test_workers_that_are_started_anew_go_on_with_their_run(small_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    train_vae(replace(SMALL, run_dir="run", steps=10))
    assert train_vae(replace(SMALL, run_dir="run", steps=20)).steps == 20
    assert len(json.loads(Path("run/config.json").read_text())["resumed"]) == 1
    with pytest.raises(SettingsError, match="give --run-dir beside --max-restarts"):
        train_vae(replace(SMALL, steps=20))
