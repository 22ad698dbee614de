"""Compiled steps of the VAE are those of eager code, and a run says why where it cannot compile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relax_rl.compute import compilation
from relax_rl.compute.distributed import ALONE
from relax_rl.errors import SettingsError
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.vae.compiled import WORTHWHILE, compiles
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.estimators import LAYERED
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.experiments.vae.training import train_vae

CPU = torch.device("cpu")
IMAGES = (np.random.default_rng(0).random((60, 12)) < 0.4).astype(np.uint8)


@pytest.fixture(autouse=True)
def _compiler_is_looked_for_anew() -> Iterator[None]:
    yield
    compilation.has_compiler.cache_clear()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the traced graph as it is, as inductor takes a while; one number for every graph."""
    graphs: list[int] = []

    def keep(graph: Any, inputs: Any, key: str | None) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(compilation, "_compile", keep)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    return graphs


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def search() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", search)
    compilation.has_compiler.cache_clear()


def trained(compile: str, *, steps: int = 5, **settings: Any) -> Trainer:
    config = VaeConfig(compile=compile, **{"width": 4, "batch_size": 6, "surrogate_width": 5, "lr": 1e-2, **settings})
    trainer = Trainer(config, torch.from_numpy(IMAGES.mean(0, dtype=np.float32)), Batches(IMAGES, seed=0))
    for _ in range(steps):
        trainer.take_step()
    return trainer


def assert_alike(ours: Trainer, theirs: Trainer, **tolerance: float) -> None:
    found, expected = ours.state_dict()[0], theirs.state_dict()[0]
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        *((name, {"layers": 2}) for name in LAYERED),
        ("nvil", {"normalize_variance": True}),
        ("rebar", {"rebar_scope": "layer"}),
        ("rebar", {"rebar_scope": "bit", "nonlinear": True, "hidden_width": 5}),
        ("relax", {"surrogate": "objective", "surrogate_context": "input", "surrogate_activation": "silu"}),
        ("relax", {"task": "structured", "layers": 2}),
    ],
)
def test_traced_steps_are_those_of_eager_code(estimator: str, settings: dict[str, Any], traced_only: list[int]) -> None:
    compiled = trained("on", estimator=estimator, **settings)
    assert len(traced_only) == 1
    assert_alike(compiled, trained("off", estimator=estimator, **settings), rtol=1e-5, atol=1e-6)


def test_code_of_inductor_takes_the_steps_of_eager_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anew, and from the cache."""
    if not compilation.has_compiler():
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("RELAX_RL_CACHE", str(tmp_path))
    compiled = trained("on", estimator="reinforce")
    assert_alike(compiled, trained("off", estimator="reinforce"), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("torch._inductor.aot_compile", lambda *_, **__: pytest.fail("compiled again"))
    assert_alike(compiled, trained("on", estimator="reinforce"), rtol=0.0, atol=0.0)


def test_code_is_kept_for_the_settings_that_it_is_of(traced_only: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    identities: list[str] = []
    original = compilation.Compiled.__init__

    def noting(self: Any, function: Any, *, identity: str, **options: Any) -> None:
        identities.append(identity)
        original(self, function, **options)

    monkeypatch.setattr(compilation.Compiled, "__init__", noting)
    for settings in ({}, {"seed": 1, "lr": 1e-3}, {"temperature": 0.3}, {"estimator": "rloo"}):
        trained("on", steps=0, **{"estimator": "relax", **settings})
    one, same, *others = identities
    assert one == same and len({one, *others}) == 3


def test_steps_in_which_the_model_stands_still_are_eager(traced_only: list[int]) -> None:
    settings: dict[str, Any] = {"estimator": "relax", "pretrain_steps": 2, "freeze_at": 2, "track_variances": ("nvil",)}
    trained("on", steps=2, **settings)
    assert not traced_only
    assert_alike(trained("on", steps=7, **settings), trained("off", steps=7, **settings), rtol=1e-5, atol=1e-6)


def test_tracing_leaves_no_mark(traced_only: list[int]) -> None:
    """Generator, parameters and buffers stay where they are."""
    trainer, twin = (trained("on", estimator="nvil", steps=0) for _ in range(2))
    assert trainer.compiled is not None
    trainer.compiled(torch.zeros(6, 12), Noise(torch.Generator()))
    assert_alike(trainer, twin, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_compiled_run_goes_on_bit_for_bit(traced_only: list[int]) -> None:
    whole = trained("on", estimator="nvil", steps=6)
    start, rest = trained("on", estimator="nvil", steps=3), trained("on", estimator="nvil", steps=0)
    rest.load_state_dict(*start.state_dict())
    for _ in range(3):
        rest.take_step()
    assert_alike(rest, whole, rtol=0.0, atol=0.0)


def test_auto_compiles_long_runs_only(traced_only: list[int]) -> None:
    assert not compiles(VaeConfig(steps=WORTHWHILE - 1), CPU, ALONE)
    assert compiles(VaeConfig(steps=WORTHWHILE), CPU, ALONE)
    assert compiles(VaeConfig(steps=1, compile="on"), CPU, ALONE)
    assert not compiles(VaeConfig(steps=WORTHWHILE, compile="off"), CPU, ALONE)


class TwoWorkers(type(ALONE)):  # type: ignore[misc]
    count = 2


@pytest.mark.parametrize(
    ("device", "workers", "word"),
    [("cuda", ALONE, "not for cuda"), ("cpu", TwoWorkers(), "single process"), ("cpu", ALONE, r"install g\+\+")],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    device: str, workers: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word.startswith("install"):
        no_compiler(monkeypatch)
    with pytest.raises(SettingsError, match=word) as caught:
        compiles(VaeConfig(compile="on"), torch.device(device), workers)
    assert "\n" not in str(caught.value)
    assert not compiles(VaeConfig(steps=WORTHWHILE), torch.device(device), workers)


def test_a_run_that_cannot_be_compiled_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    with pytest.raises(SettingsError, match="compiler"):
        train_vae(VaeConfig(data="digits", compile="on", run_dir=str(tmp_path / "run"), quiet=True))
    assert not (tmp_path / "run").exists()


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nx.cpp:1: fatal error: omp.h: No such file"
        )

    monkeypatch.setattr("torch._inductor.aot_compile", fail)
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    monkeypatch.setattr("relax_rl.experiments.vae.compiled.has_compiler", lambda: True)


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    with pytest.raises(SettingsError, match=r"omp\.h: No such file.*--compile off") as caught:
        trained("on", estimator="nvil")
    assert "\n" not in str(caught.value)


def test_where_nobody_asked_for_it_the_run_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    with pytest.warns(UserWarning, match="eager code"):
        found = trained("auto", estimator="nvil")
    assert_alike(found, trained("off", estimator="nvil"), rtol=0.0, atol=0.0)
