"""The benchmark's closed form of a policy's Jacobian is that of automatic differentiation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.func import functional_call, jacrev, vmap

from benchmarks.headroom_controls import policy_metric
from relax_rl.agents import A2C


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=str)
def test_metric_is_the_jacobian_times_itself(action_space: spaces.Space[Any]) -> None:
    agent = A2C(spaces.Box(-1, 1, (5,), np.float32), action_space, seed=0, hidden=(8, 7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    obs = torch.randn(6, 5, generator=generator)
    weights = {name: x.detach() for name, x in agent.policy.named_parameters()}
    found = vmap(jacrev(lambda theta, o: functional_call(agent.policy, theta, (o[None],))[0]), in_dims=(None, 0))(
        weights, obs
    )
    jacobian = torch.cat([x.flatten(2) for x in found.values()], -1)
    torch.testing.assert_close(policy_metric(agent.policy, obs), jacobian @ jacobian.mT)
