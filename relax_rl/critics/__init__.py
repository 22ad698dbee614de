"""The critics: V(s) and the action-dependent surrogate c_phi(s, a)."""

from relax_rl.critics.surrogate import ActionSurrogate, MLPSurrogate, surrogate_at
from relax_rl.critics.value import ValueFunction, explained_variance

__all__ = ["ActionSurrogate", "MLPSurrogate", "ValueFunction", "explained_variance", "surrogate_at"]
