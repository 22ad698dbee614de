"""What tests of an agent's steps share: agents whose surrogates are awake, and agents that are alike."""

from __future__ import annotations

import torch

from relax_rl.agents import ActorCritic

__all__ = ["assert_alike", "shake", "shake_module"]


def shake(agent: ActorCritic) -> None:
    """Wake an agent's surrogate up, if it has one: at zero, rounding alone decides which way Adam's first steps go."""
    surrogate = agent.components().get("surrogate")
    if surrogate is not None:
        shake_module(surrogate, torch.Generator().manual_seed(0))


def shake_module(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Give a module lively weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def assert_alike(found: ActorCritic, expected: ActorCritic, tolerance: float = 1e-5) -> None:
    """Assert that all tensors of two agents are equal to rounding."""
    ours, theirs = found.state_dict()[0], expected.state_dict()[0]
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(
            x, theirs[name], rtol=1e-4, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
