"""The estimator and the networks of a saved agent, where they are the user's own and are named again to look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from relax_rl.settings.naming import named

if TYPE_CHECKING:
    from relax_rl.agents.factory import NetworkFactory

__all__ = ["own_networks"]


def own_networks(estimator: str | None, networks: str | None) -> NetworkFactory | None:
    """Make an estimator of the user's own known, and return the factory of their networks, for `load_agent`.

    Args:
        estimator, networks: `module:name`; None where they are this package's.

    Raises:
        SettingsError: there is no such estimator or factory.
    """
    from relax_rl.agents import learn_of

    if estimator is not None:
        learn_of(estimator)
    return None if networks is None else cast("NetworkFactory", named(networks, "networks"))
