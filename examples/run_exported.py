"""Plays episodes with an exported policy: NumPy, Gymnasium and ONNX Runtime, and nothing of relax_rl.

python train_agent.py export runs/my-run
python examples/run_exported.py runs/my-run/policy.onnx --episodes 5
"""

import argparse

import gymnasium as gym
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser()
parser.add_argument("policy")
parser.add_argument("--episodes", type=int, default=5)
args = parser.parse_args()

session = onnxruntime.InferenceSession(args.policy)
inputs = {each.name: each for each in session.get_inputs()}
env = gym.make(session.get_modelmeta().custom_metadata_map["env"])
for episode in range(args.episodes):
    (obs, info), total, ended = env.reset(seed=episode), 0.0, False
    while not ended:
        given = {"obs": np.asarray(obs)[None]}
        if "action_mask" in inputs:  # True allows an action; here all are
            given["action_mask"] = np.ones((1, inputs["action_mask"].shape[1]), np.bool_)
        action = session.run(["action"], given)[0][0]
        obs, reward, terminated, truncated, info = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    print(f"episode {episode}: return {total:g}")
