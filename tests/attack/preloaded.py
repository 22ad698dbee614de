"""What children of the attack find imported, and what has to be before anything is interrupted: half an import breaks the rest."""

import os
from importlib import import_module

os.environ.setdefault("RELAX_RL_CACHE", "")
for _name in (
    *(
        "sympy.printing",
        "sklearn.datasets",
        "matplotlib.figure",
        "relax_rl.comparison.session",
        "relax_rl.runs.training",
    ),
    *(
        "relax_rl.experiments.toy.run",
        "relax_rl.experiments.vae.training",
        "relax_rl.runs.plotting",
        "tests.attack.faulty",
    ),
):
    import_module(_name)
import_module("torch").set_num_threads(1)
