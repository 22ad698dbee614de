"""Make `tests/fixtures/VERSION` with the package as it is: `python -m tests.make_fixtures`.

To be run on the commit that wrote the files (told in their README), or, for a new version, on that version's own: a
folder that exists is never written over, since only the code of its time can make it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

import relax_rl
from relax_rl.cli import main
from tests.old_artefacts import FIXTURES, newest, policy_and_value, trained
from tests.surface import surface

ROOT = Path(__file__).parent.parent
TINY = "--hidden 8 --surrogate-hidden 8 --num-envs 4 --total-steps 400 --log-interval 100 --no-tensorboard --quiet"
LEARN = "--policy-lr 0.01 --value-lr 0.01 --surrogate-lr 0.01"
PASSES = "--num-steps 16 --epochs 3 --minibatch-size 20 --clip-range 0.2 --target-kl 0.5 --lr-schedule linear"
PLAIN, OLD = "--preset none --env", "--preset none --env tests.old_envs:relax_rl_old"
RUNS = {
    "a2c": "--env CartPole-v1 --estimator a2c --eval-interval 200 --eval-episodes 2 --checkpoint-interval 200",
    "reinforce": f"{PLAIN} CartPole-v1 --estimator reinforce",
    "relax": f"{PLAIN} CartPole-v1 --estimator relax --entropy-coef 0.01 --surrogate-scale fitted",
    "marginal": f"{PLAIN} CartPole-v1 --estimator marginal --surrogate-steps 2",
    "normalised": f"{PLAIN} CartPole-v1 --estimator relax --normalize-obs --normalize-reward",
    "lax": "--env Pendulum-v1 --estimator lax",
    "squashed": f"{PLAIN} Pendulum-v1 --estimator lax --squash --state-dependent-std --log-std-init -0.5",
    "bins": f"{PLAIN} Pendulum-v1 --estimator relax --bins 5 --ordinal-std-init 0.5 --normalize-reward",
    "passes": f"{PLAIN} CartPole-v1 --estimator relax {PASSES} --value-replay 2",
    "bits": f"{OLD}/Bits-v0 --estimator relax",
    "choices": f"{OLD}/Choices-v0 --estimator relax",
    "images": f"{OLD}/Images-v0 --estimator relax --cnn-features 8 --optimizer rmsprop --policy-lr 0.0003",
}
DROPPED = {
    "surrogate_replay": f"{PLAIN} CartPole-v1 --estimator relax --surrogate-replay 2",
    "surrogate_regression": f"{PLAIN} CartPole-v1 --estimator relax --surrogate-regression 0.5",
    "advantage_scale": f"{PLAIN} CartPole-v1 --estimator relax --advantage-scale running",
}
VAE = (
    "vae --data digits --width 6 --surrogate-width 4 --lr 0.01 --steps 200 --log-interval 50 --checkpoint-interval 200 "
    "--eval-samples 2 --batch-size 8 --valid-images 40 --no-tensorboard --quiet"
)
VAES = {"relax": "--estimator relax --layers 2 --track-variances nvil rebar", "nvil": "--estimator nvil"}
TOY = "toy --steps 40 --seeds 3 --log-interval 10 --draws 20 --estimators reinforce rebar relax --quiet"
COMPARE = (
    "compare --env CartPole-v1 --estimators few=relax:num_envs=4 a2c --seeds 2 --total-steps 6000 --num-workers 1 "
    "--quiet --set hidden=8 surrogate_hidden=8 log_interval=500 checkpoint_interval=2000 tensorboard=false"
)
TORCHRUN = f"{PLAIN} CartPole-v1 --estimator relax --normalize-obs {TINY} {LEARN} --num-envs 2"

README = """# Written by version {version}

Runs, checkpoints and results as commit {commit} wrote them, for `tests/test_old_artefacts.py`: newer code must go on
reading them. `python -m tests.make_fixtures` made them, with the package of that commit; it never writes over them.

- `runs/`: an agent of every kind; `expected/`: observations and what each agent made of them then.
- `dropped/`: runs with settings that later versions may refuse, in one line.
- `vae/`, `toy/`, `compare/` (stopped half-way), `torchrun/` (two workers): of the other commands.
- `surface.json`: options, public names and signatures, for `tests/test_outside.py`.

Figures and TensorBoard events are left out.
"""


def run(arguments: str) -> None:
    """A command in this process, which must end well."""
    assert main(arguments.split()) == 0, arguments


def subprocess_of(*arguments: str) -> list[str]:
    """A module in a process of its own."""
    return [sys.executable, "-m", *arguments]


def expectation(path: Path) -> dict[str, np.ndarray]:
    """Sixteen observations (four images), and what the agent of a run makes of them."""
    agent = trained(path)
    space, rng = agent.observation_space, np.random.default_rng(0)
    if space.dtype == np.uint8:
        obs = np.stack([np.full(space.shape, level, np.uint8) for level in (0, 90, 180, 255)])
    else:
        obs = rng.normal(size=(16, *space.shape)).astype(np.float32)
    params, values = policy_and_value(agent, obs)
    return {
        "obs": obs,
        "deterministic": agent.predict(obs, deterministic=True)[0],
        "sampled": trained(path).predict(obs)[0],
        "params": params,
        "values": values,
    }


def half_a_comparison() -> None:
    """A comparison that Ctrl-C stops while the second of its four runs is under way."""
    command = [*subprocess_of("relax_rl"), *COMPARE.split(), "--run-dir", "compare"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not halfway():
        assert process.poll() is None, "it has ended"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert halfway(), "stopped between two runs: try again"


def halfway() -> bool:
    """Whether a run has ended and another one has saved something."""
    ended = {path.parent for path in Path("compare/runs").glob("*/outcome.json")}
    return bool(ended and {path.parents[1] for path in Path("compare/runs").glob("*/checkpoints/step_*")} - ended)


def make_all() -> None:
    """Everything, in the working folder."""
    for name, options in RUNS.items():
        run(f"train {TINY} {LEARN} {options} --run-dir runs/{name}")
    Path("expected").mkdir()
    for path in sorted(Path("runs").iterdir()):
        save_file(
            {k: np.ascontiguousarray(x) for k, x in expectation(path).items()}, f"expected/{path.name}.safetensors"
        )
    for name, options in DROPPED.items():
        run(f"train {TINY} {LEARN} {options} --run-dir dropped/{name}")
    for name, options in VAES.items():
        run(f"{VAE} {options} --run-dir vae/{name}")
    run(f"{TOY} --run-dir toy")
    half_a_comparison()
    torchrun = subprocess_of("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "relax_rl")
    command = [*torchrun, *TORCHRUN.split(), "--run-dir", "torchrun"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    Path("surface.json").write_text(json.dumps(surface(), indent=1) + "\n")


def tidy(folder: Path, temporary: str) -> None:
    """Leave out what no reader needs, and check that nothing tells of this machine."""
    for path in [
        *folder.rglob("*.png"),
        *folder.rglob(".lock"),
        *folder.rglob("events.out.*"),
        *folder.rglob("logs/*"),
    ]:
        path.unlink()
    for path in folder.rglob("checkpoints/step_*"):
        if path != newest(path.parent.parent) and "a2c" not in path.parts:
            path.unlink()
    for path in filter(Path.is_file, folder.rglob("*")):
        data = path.read_bytes()
        assert temporary.encode() not in data and str(ROOT).encode() not in data, path


def make() -> None:
    """Write the folder of this version."""
    target = FIXTURES / relax_rl.__version__
    assert not target.exists(), f"{target} exists; only the commit that wrote it may write it"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(sys, "argv", ["relax-rl"]):
        os.chdir(temporary)
        make_all()
        os.chdir(ROOT)
        readme = README.format(version=relax_rl.__version__, commit=commit.stdout.strip())
        Path(temporary, "README.md").write_text(readme)
        tidy(Path(temporary), temporary)
        shutil.copytree(temporary, target)


if __name__ == "__main__":
    make()
