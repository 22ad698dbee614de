"""Exported policies: the same actions as `predict`, over every space, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C
from relax_rl.agents.exported import ExportedPolicy
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.exporting import export_policy

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "clock": spaces.Box(0.0, 2e9, (2, 2), np.float64),
    "discrete": spaces.Discrete(4, start=2),
    "choices": spaces.MultiDiscrete([2, 3], start=[1, 0]),
    "dict": spaces.Dict(a=VECTOR, b=spaces.Discrete(3), camera=spaces.Box(0, 255, (9, 9, 3), np.uint8)),
    "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "bits": spaces.Box(0, 1, (10, 10, 4), np.bool_),
    "tuple": spaces.Tuple((VECTOR, spaces.MultiBinary(3))),
    "namesakes": spaces.Dict(action_mask=spaces.MultiBinary(3), state=VECTOR, action=VECTOR, next_state=VECTOR),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=1),
    "choices": spaces.MultiDiscrete([2, 3], start=[0, 5]),
    "bits": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(np.float32(-2), np.array([1, 512], np.float32), (2,), np.float32),
    "dict": spaces.Dict(gear=spaces.Discrete(3), thrust=spaces.Box(-1, 1, (2,), np.float64)),
    "tuple": spaces.Tuple((spaces.MultiDiscrete([2, 2]), spaces.Discrete(3), spaces.MultiBinary(2))),
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("vector", "discrete", {"normalize_obs": True}),
    ("clock", "box", {"normalize_obs": True}),
    ("clock", "box", {"normalize_obs": True, "squash": True}),
    ("tuple", "box", {"action_distribution": "beta"}),
    ("vector", "box", {"rescale_actions": False, "state_dependent_std": True}),
    ("discrete", "choices", {}),
    ("discrete", "choices", {"embed": 4}),
    ("choices", "bits", {}),
    ("dict", "dict", {"normalize_obs": True}),
    ("dict", "discrete", {"policy_keys": ("a", "camera"), "cnn": "small"}),
    ("image", "tuple", {"hidden": (8,)}),
    ("bits", "discrete", {"cnn": "small"}),
    ("vector", "discrete", {"memory": "gru", "memory_size": 8}),
    ("dict", "choices", {"memory": "lstm", "memory_size": 8, "policy_keys": ("a", "b")}),
    ("namesakes", "discrete", {"memory": "gru", "memory_size": 8}),
]
IN_ONNX = [0, 1, 3, 8, 9, 11, 12, 13, 14]


def agent_of(observation: str, action: str, settings: dict[str, Any]) -> A2C:
    """An agent whose actions differ between observations, and whose statistics have seen some."""
    agent = A2C(OBSERVATIONS[observation], ACTIONS[action], seed=0, policy_head_scale=3.0, **settings)
    if agent.obs_normalizer is not None:
        raw = batch_of(OBSERVATIONS[observation], 20)
        agent.obs_normalizer.shift = agent.observations.shift_for(raw)
        seen = torch.from_numpy(agent.encode(raw))
        agent.obs_normalizer.update(seen[None], torch.ones((1, len(seen)), dtype=torch.bool))
    return agent


def batch_of(space: spaces.Space[Any], count: int) -> Any:
    space.seed(0)
    rows = [space.sample() for _ in range(count)]
    return gym.vector.utils.concatenate(space, rows, gym.vector.utils.create_empty_array(space, count))


def leaves(value: Any, name: str) -> dict[str, np.ndarray]:
    """Arrays by the keys on the way to them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else None
    if items is None:
        return {name: np.asarray(value)}
    return {k: x for key, part in items for k, x in leaves(part, f"{name}.{key}".lstrip(".")).items()}


def given(policy: ExportedPolicy, raw: Any, mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Everything but the memory."""
    found = {"obs": np.asarray(raw)} if isinstance(raw, np.ndarray) else leaves(raw, "")
    found = {f"obs.{name}" if f"obs.{name}" in policy.inputs else name: x for name, x in found.items()}
    if mask is not None:
        found["action_mask"] = mask
    return {name: x for name, x in found.items() if name in policy.inputs}


def mask_for(agent: A2C, count: int) -> np.ndarray | None:
    """Masks of which every choice allows something, and most forbid something."""
    if agent.masks is None:
        return None
    mask = np.random.default_rng(0).random((count, agent.masks.width)) < 0.5
    return mask | agent.masks.stuck(mask)[:, None]


def check_same(agent: A2C, policy: ExportedPolicy, run: Any) -> None:
    """Three steps of five rows, an episode beginning in the second."""
    state: Any = None
    remembered = np.zeros((5, agent.networks.state_sizes[0]), np.float32)
    for step in range(3):
        raw, mask = batch_of(agent.observation_space, 5), mask_for(agent, 5)
        begins = np.array([False, step == 1, False, False, False])
        inputs = given(policy, raw, mask)
        if agent.networks.state_sizes[0]:
            inputs |= {"state": remembered, "episode_start": begins}
        out = dict(zip(policy.outputs, run([inputs[name] for name in policy.inputs]), strict=True))
        expected, state = agent.predict(raw, state, begins, deterministic=True, action_masks=mask)
        for name, action in leaves(expected, "action").items():
            assert out[name].dtype == action.dtype and out[name].shape == action.shape
            np.testing.assert_allclose(out[name], action, rtol=2e-5, atol=2e-5)
        if "next_state" in out:
            remembered = out["next_state"]
            np.testing.assert_allclose(remembered, state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join((case[0], case[1], *case[2])))
def test_the_graph_does_what_predict_does(case: tuple[str, str, dict[str, Any]]) -> None:
    agent = agent_of(*case)
    policy = ExportedPolicy(agent).eval()
    actions = policy(*policy.examples(2))[0]
    assert actions.shape[0] == 2

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in policy(*map(torch.from_numpy, inputs))]

    check_same(agent, policy, run)


def test_inputs_have_names_of_their_own() -> None:
    def inputs(action: str, **settings: Any) -> list[str]:
        return ExportedPolicy(agent_of("namesakes", action, settings)).inputs

    leaves, others = [f"obs.{name}" for name in OBSERVATIONS["namesakes"]], ["action_mask", "state", "episode_start"]  # type: ignore[attr-defined]
    assert inputs("discrete", memory="gru") == [*leaves, *others]
    assert inputs("box") == ["action_mask", "state", "obs.action", "next_state"]


@pytest.mark.parametrize("number", IN_ONNX)
def test_onnx_runtime_does_what_predict_does(number: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    runtime = pytest.importorskip("onnxruntime", reason="runs the file with it")
    agent = agent_of(*CASES[number])
    policy = export_policy(agent, tmp_path / "policy.onnx", about={"env": "Mine-v0", "nested": {"a": 1}})
    session = runtime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == policy.inputs
    assert all(each.shape[0] == "batch" for each in session.get_inputs())
    assert session.get_modelmeta().custom_metadata_map["nested"] == '{"a": 1}'
    check_same(agent, policy, lambda inputs: session.run(policy.outputs, dict(zip(policy.inputs, inputs, strict=True))))


def test_a_program_of_torch_does_what_predict_does(tmp_path: Path) -> None:
    agent = agent_of(*CASES[12])
    policy = export_policy(agent, tmp_path / "policy.pt2", form="torch")
    program = torch.export.load(tmp_path / "policy.pt2").module()
    check_same(agent, policy, lambda inputs: [x.detach().numpy() for x in program(*map(torch.from_numpy, inputs))])


def test_networks_that_cannot_be_traced_are_told(tmp_path: Path) -> None:
    agent = agent_of(*CASES[0])
    agent.policy.torso.forward = lambda obs: torch.from_numpy(obs.numpy())
    with pytest.raises(RelaxRLError, match=r"the policy cannot be exported .*networks of your own must be ones"):
        export_policy(agent, tmp_path / "policy.pt2", form="torch")
    assert not list(tmp_path.iterdir())


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str], refused: Any) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    onnx = pytest.importorskip("onnx")
    from relax_rl.commands.main import main

    assert main(["export", str(run)]) == 0
    assert "inputs      obs, action_mask" in capsys.readouterr().out
    about = {entry.key: entry.value for entry in onnx.load(run / "policy.onnx").metadata_props}
    assert about["env"] == "CartPole-v1" and json.loads(about["action_space"])["n"] == 2
    assert "output is" in refused("export", str(run), "--output", str(run))
    assert "invalid choice: 'tflite'" in refused("export", str(run), "--format", "tflite")
    assert "does not exist" in refused("export", str(run / "nowhere"))


def test_the_agent_learns_on_as_if_nothing_had_been_written(tmp_path: Path) -> None:
    agent = agent_of(*CASES[0])
    before = {name: part.training for name, part in agent.policy.named_modules()}
    policy = export_policy(agent, tmp_path / "policy.pt2", form="torch")
    assert {name: part.training for name, part in agent.policy.named_modules()} == before and all(before.values())
    assert policy.outputs


def test_a_mistake_about_spaces_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, count: int = 3) -> None:
        raise SettingsError("numbers that torch does not have")

    monkeypatch.setattr("relax_rl.agents.exported.ExportedPolicy.examples", refuse)
    with pytest.raises(SettingsError, match=r"^numbers that torch does not have$"):
        export_policy(agent_of(*CASES[0]), tmp_path / "policy.pt2", form="torch")
