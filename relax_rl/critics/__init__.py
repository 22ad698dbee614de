"""The critics: V(s) and the action-dependent surrogate c_phi(s, a)."""

from relax_rl.critics.action_distribution import DistributionalActionValue, DistributionalActionValues, relative_to
from relax_rl.critics.action_value import ActionValues
from relax_rl.critics.bins import Bins, hl_gauss
from relax_rl.critics.distributional import DistributionalValue, OverBins
from relax_rl.critics.surrogate import ActionSurrogate, MLPSurrogate, surrogate_at
from relax_rl.critics.value import ValueFunction, explained_variance

__all__ = [
    "ActionSurrogate",
    "ActionValues",
    "Bins",
    "DistributionalActionValue",
    "DistributionalActionValues",
    "DistributionalValue",
    "MLPSurrogate",
    "OverBins",
    "ValueFunction",
    "explained_variance",
    "hl_gauss",
    "relative_to",
    "surrogate_at",
]
