"""The shared core: gradients of expectations, as pure functions on tensors.

Low level, for any distribution: `reinforce_gradient`, `lax_gradient`, `relax_gradient`.
High level, for the distributions of `relax_rl.distributions`: `reinforce`, `lax`, `relax`, which return an `Estimate`.
"""

from relax_rl.estimators.estimate import Estimate, variance_loss, weighted_moments
from relax_rl.estimators.gradients import lax_gradient, reinforce_gradient, relax_gradient, score_function
from relax_rl.estimators.sampling import Objective, Surrogate, lax, reinforce, relax

__all__ = [
    "Estimate",
    "Objective",
    "Surrogate",
    "lax",
    "lax_gradient",
    "reinforce",
    "reinforce_gradient",
    "relax",
    "relax_gradient",
    "score_function",
    "variance_loss",
    "weighted_moments",
]
