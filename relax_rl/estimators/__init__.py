"""The shared core: gradients of expectations, as pure functions on tensors.

Low level, for any distribution and any surrogate: `relax_gradient` and its kin take log-probabilities and controls.
High level: `estimator(f, dist, ...)` for the distributions of `relax_rl.distributions`, or any other with the same
methods; all of them return an `Estimate`. `ESTIMATORS` finds them by name.
"""

from relax_rl.estimators.antithetic import arm, arms, disarm
from relax_rl.estimators.bounds import dreg
from relax_rl.estimators.draws import Objective, score_of
from relax_rl.estimators.estimate import Estimate, only_to, variance_loss, weighted_moments
from relax_rl.estimators.exact import enumerated, marginal
from relax_rl.estimators.gradients import (
    control_variate_gradient,
    dlax_gradient,
    lax_gradient,
    reinforce_gradient,
    relax_gradient,
    row_gradient,
    score_function,
    value_and_gradient,
)
from relax_rl.estimators.losses import noise_behind, policy_gradient_loss, unclipped
from relax_rl.estimators.multisample import double_cv, rodeo
from relax_rl.estimators.nodes import StochasticGraph
from relax_rl.estimators.pathwise import concrete, gumbel_rao, reinmax, reparameterized, straight_through
from relax_rl.estimators.registry import ESTIMATORS, EstimatorInfo, describe, make_estimator
from relax_rl.estimators.rejection import rejection
from relax_rl.estimators.relaxation import dlax, lax, rebar, relax, relaxed_objective
from relax_rl.estimators.score import MovingAverage, muprop, nvil, reinforce, rloo, vimco
from relax_rl.estimators.sequences import Sequences, sample_sequences, sequence_rloo
from relax_rl.estimators.slopes import SlopedSurrogate, Surrogate
from relax_rl.estimators.tables import estimator_table
from relax_rl.estimators.without_replacement import unordered_set, without_replacement

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "EstimatorInfo",
    "MovingAverage",
    "Objective",
    "Sequences",
    "SlopedSurrogate",
    "StochasticGraph",
    "Surrogate",
    "arm",
    "arms",
    "concrete",
    "control_variate_gradient",
    "describe",
    "disarm",
    "dlax",
    "dlax_gradient",
    "double_cv",
    "dreg",
    "enumerated",
    "estimator_table",
    "gumbel_rao",
    "lax",
    "lax_gradient",
    "make_estimator",
    "marginal",
    "muprop",
    "noise_behind",
    "nvil",
    "only_to",
    "policy_gradient_loss",
    "rebar",
    "reinforce",
    "reinforce_gradient",
    "reinmax",
    "rejection",
    "relax",
    "relax_gradient",
    "relaxed_objective",
    "reparameterized",
    "rloo",
    "rodeo",
    "row_gradient",
    "sample_sequences",
    "score_function",
    "score_of",
    "sequence_rloo",
    "straight_through",
    "unclipped",
    "unordered_set",
    "value_and_gradient",
    "variance_loss",
    "vimco",
    "weighted_moments",
    "without_replacement",
]
