"""Plays episodes with an exported policy: `python examples/run_exported.py policy.onnx --episodes 5`.

NumPy, Gymnasium and ONNX Runtime are all it needs, nothing of relax_rl. Behind `python train_agent.py export RUN` the policy is
`RUN/policy.onnx`.
"""

import argparse
import importlib
import json

import gymnasium as gym
import numpy as np
import onnxruntime


def leaves(obs, name=""):
    """Arrays of an observation by the names of the file's inputs, such as `camera.left`; `obs` where there is only one."""
    if not isinstance(obs, (dict, tuple)):
        return {name or "obs": np.asarray(obs)}
    found = {}
    for key, part in obs.items() if isinstance(obs, dict) else enumerate(obs):
        found |= leaves(part, f"{name}.{key}" if name else str(key))
    return found


def action_of(space, outputs, name="action"):
    """The environment's action, put together from outputs such as `action.gear`."""
    if isinstance(space, gym.spaces.Dict):
        return {key: action_of(part, outputs, f"{name}.{key}") for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(action_of(part, outputs, f"{name}.{i}") for i, part in enumerate(space))
    return outputs[name][0]


def made(name, kwargs):
    """The environment by its id, or by `module:ClassOrFunction` where that is no id that the module registers."""
    module, _, thing = name.rpartition(":")
    found = importlib.import_module(module) if module else None
    return gym.make(name, **kwargs) if thing in gym.registry or not module else getattr(found, thing)(**kwargs)


parser = argparse.ArgumentParser()
parser.add_argument("policy")
parser.add_argument("--episodes", type=int, default=5)
args = parser.parse_args()

session = onnxruntime.InferenceSession(args.policy)
inputs = {each.name: each.shape for each in session.get_inputs()}
outputs = [each.name for each in session.get_outputs()]
about = session.get_modelmeta().custom_metadata_map
for name in ("bins", "wrapper", "frame_stack", "mask_key", "atari"):
    if name in about:
        raise SystemExit(f"the policy was trained with {name} {about[name]}: do the same to the environment here")
env = made(about["env"], json.loads(about["env_kwargs"]))
for episode in range(args.episodes):
    (obs, info), total, ended = env.reset(seed=episode), 0.0, False
    memory = "next_state" in outputs
    state, first = np.zeros((1, inputs["state"][1] if memory else 0), np.float32), True
    while not ended:
        seen = leaves(obs)  # a leaf that is called like another input or output is `obs.NAME`
        given = {f"obs.{x}" if f"obs.{x}" in inputs.keys() - seen.keys() else x: seen[x][None] for x in seen}
        if "action_mask" in inputs and not isinstance(
            env.action_space, gym.spaces.Box
        ):  # True allows; without, all are
            mask, how = np.ones(inputs["action_mask"][1]), about.get("action_masks", "auto")
            if how in ("auto", "info") and "action_mask" in info:
                mask = info["action_mask"]
            elif how in ("auto", "method") and env.has_wrapper_attr("action_masks"):
                mask = env.get_wrapper_attr("action_masks")()
            given["action_mask"] = np.asarray(mask, np.bool_).reshape(1, -1)
        if memory:
            given |= {"state": state, "episode_start": np.array([first])}
        found = dict(zip(outputs, session.run(None, {name: given[name] for name in inputs}), strict=True))
        state, first = found.get("next_state", state), False
        obs, reward, terminated, truncated, info = env.step(action_of(env.action_space, found))
        total, ended = total + float(reward), terminated or truncated
    print(f"episode {episode}: return {total:g}")
