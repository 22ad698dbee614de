"""What children of the attack find imported."""

import os

os.environ.setdefault("RELAX_RL_CACHE", "")

import sklearn.datasets  # noqa: E402
import torch  # noqa: E402

import relax_rl.comparison.session  # noqa: E402
import relax_rl.experiments.toy.run  # noqa: E402
import relax_rl.experiments.vae.training  # noqa: E402
import relax_rl.runs.plotting  # noqa: E402
import relax_rl.runs.training  # noqa: E402
import tests.attack.faulty  # noqa: E402, F401

torch.set_num_threads(1)
