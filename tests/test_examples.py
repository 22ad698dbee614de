"""The example scripts: that they run, and that a plain loop becomes RELAX in a few lines."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import io
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import relax_rl

ROOT = Path(relax_rl.__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a script with arguments in this process, in the test's folder, and returns the lines that it prints."""

    def call(script: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return printed.getvalue().splitlines()

    monkeypatch.chdir(tmp_path)
    return call


def test_every_example_is_run() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert len(scripts) >= 7 and all(f'"{name}"' in text for name in scripts)


def test_train_and_save(tmp_path: Path) -> None:
    run("train_and_save.py", "--steps", "1000", "--path", "agent.safetensors", folder=tmp_path)
    assert (tmp_path / "agent.safetensors").exists()


@pytest.mark.parametrize("script", ["a2c.py", "a2c_relax.py", "ppo.py", "ppo_relax.py"])
def test_plain_loops_learn(script: str, tmp_path: Path) -> None:
    """20,000 steps leave a random policy (about 22) behind."""
    lines = run(script, "--steps", "21000", folder=tmp_path).splitlines()
    assert float(lines[-1].split()[-1]) > 32


def test_code_of_ones_own_is_trained_gone_on_with_and_loaded(tmp_path: Path) -> None:
    lines = run("your_own.py", "2500", folder=tmp_path).splitlines()
    assert lines.count("that was all") == 2 and lines[-1].startswith("half-way 50")
    assert len((EXAMPLES / "your_own.py").read_text(encoding="utf-8").splitlines()) <= 60


SHORT = {
    "causal_order.py": ["--steps", "3", "--graphs", "1", "--variables", "4"],
    "sort_numbers.py": ["--steps", "2", "--seeds", "1", "--numbers", "3"],
    "choose_features.py": ["--steps", "2", "--classifier-steps", "5"],
}


@pytest.mark.parametrize("script", SHORT)
def test_orders_and_sets_are_learned_and_drawn(script: str, tmp_path: Path, shown: Callable[..., list[str]]) -> None:
    lines = shown(script, *SHORT[script])
    assert len(lines) >= 3 and {"relax", "rloo"} <= {line.split(":")[0].strip() for line in lines}
    assert (tmp_path / script.replace(".py", ".png")).stat().st_size > 1_000
    assert len((EXAMPLES / script).read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs stable-baselines3")
def test_stable_baselines3_evaluates_our_agent(tmp_path: Path) -> None:
    text = run("evaluate_with_sb3.py", "--steps", "2000", "--episodes", "4", folder=tmp_path)
    assert text.startswith("return ") and "over 4 episodes" in text


def code_of(script: str) -> list[str]:
    """Lines of code, without the module's docstring and blank lines."""
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    first = ast.parse(text).body[0]
    return [line for line in text.splitlines()[first.end_lineno :] if line.strip()]


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_relax_takes_fewer_than_ten_changed_lines(algorithm: str) -> None:
    before, after = code_of(f"{algorithm}.py"), code_of(f"{algorithm}_relax.py")
    changes = [line for line in difflib.ndiff(before, after) if line.startswith(("+ ", "- "))]
    added, removed = (sum(line.startswith(sign) for line in changes) for sign in "+-")
    assert 0 < max(added, removed) < 10


def test_an_exported_policy_plays_without_the_package(finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="runs the file with it")
    from relax_rl.commands.main import main

    assert main(["export", str(finished_run), "--output", str(tmp_path / "policy.onnx")]) == 0
    lines = run("run_exported.py", "policy.onnx", "--episodes", "2", folder=tmp_path).splitlines()
    assert len(lines) == 2 and lines[0].startswith("episode 0: return ")
    assert "relax_rl" not in (EXAMPLES / "run_exported.py").read_text(encoding="utf-8").split('"""')[2]


class Namesakes(gym.Env[Any, Any]):
    """Its observations have leaves that are called like inputs of an exported policy; refuses what its mask forbids."""

    observation_space = gym.spaces.Dict(action_mask=gym.spaces.MultiBinary(3), state=gym.spaces.Box(-1, 1, (2,)))
    action_space = gym.spaces.Discrete(3)

    def action_masks(self) -> np.ndarray:
        return ~self.mask.astype(bool)  # what infos say goes before it

    def see(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.mask = np.eye(3, dtype=np.int8)[self.t % 3]
        return {"action_mask": self.mask, "state": np.zeros(2, np.float32)}, {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see()

    def step(self, action: Any) -> Any:
        assert self.mask[action]
        self.t += 1
        obs, info = self.see()
        return obs, 1.0, self.t == 6, False, info


gym.register("relax_rl_tests/Namesakes-v0", Namesakes)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("Blackjack-v1", ("--memory", "gru", "--env-kwargs", "sab=true")),  # a Tuple of observations, and a state
        ("Taxi-v4", ()),  # numbered states, and a mask in each info
        ("benchmarks.docks:relax_rl/Docks-v0", ()),  # a compound action
        ("relax_rl_tests/Namesakes-v0", ("--memory", "gru")),
        ("relax_rl_tests/Namesakes-v0", ()),
        ("tests.test_examples:Namesakes", ()),  # no id
    ],
)
def test_exported_policies_of_any_spaces_play(
    env: str, options: tuple[str, ...], tmp_path: Path, shown: Callable[..., list[str]]
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="runs the file with it")
    from relax_rl.commands.main import main

    short = ("--total-steps", "64", "--num-steps", "8", "--num-envs", "2", "--vectorization", "sync")
    assert main(["train", "--env", env, "--run-dir", "run", *short, *options]) == 0
    assert main(["export", "run", "--checkpoint", "latest", "--output", "policy.onnx"]) == 0
    lines = shown("run_exported.py", "policy.onnx", "--episodes", "2")
    assert [line.partition(":")[0] for line in lines] == ["episode 0", "episode 1"]


def test_an_exported_policy_is_not_played_on_another_environment(
    tmp_path: Path, shown: Callable[..., list[str]]
) -> None:
    """Actions cut into bins are numbers, which a pendulum would take as torques."""
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="runs the file with it")
    from relax_rl.commands.main import main

    assert main(["train", "--env", "Pendulum-v1", "--bins", "7", "--total-steps", "64", "--run-dir", "run"]) == 0
    assert main(["export", "run", "--checkpoint", "latest", "--output", "policy.onnx"]) == 0
    with pytest.raises(SystemExit, match="trained with bins 7"):
        shown("run_exported.py", "policy.onnx")


@pytest.mark.parametrize("script", ["counts.py", "sequences.py", "components.py"])
def test_demonstrations_run_and_draw(script: str, tmp_path: Path, shown: Callable[..., list[str]]) -> None:
    lines = shown(script, "--steps", "12", "--seeds", "1")
    assert len(lines) >= 3 and all("at the end" in line for line in lines)
    assert (tmp_path / script.replace(".py", ".png")).stat().st_size > 1000
    assert len((EXAMPLES / script).read_text(encoding="utf-8").splitlines()) < 150


def test_hard_attention_runs_on_data_of_its_form_and_says_what_is_missing(
    tmp_path: Path, shown: Callable[..., list[str]]
) -> None:
    """On a few random digits: the files of MNIST are not part of the project."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 70), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(bytes(16) + images.tobytes())
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(bytes(8) + bytes(i % 10 for i in range(count)))
    short = ["--steps", "4", "--seeds", "1"]
    lines = shown("attention.py", "--data-dir", str(tmp_path), *short)
    assert [line.split()[0] for line in lines] == ["REINFORCE", "RELAX"] and (tmp_path / "attention.png").exists()
    assert len((EXAMPLES / "attention.py").read_text(encoding="utf-8").splitlines()) < 150
    with pytest.raises(SystemExit, match=r"get the four files of MNIST .* by --data-dir"):
        shown("attention.py", *short)
