"""Flat parameters, and optimisers on them beside torch's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from relax_rl.agents.optimizers import Adam, FlatParameters, RMSprop, clip_norm_
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)).to(memory_format=torch.channels_last)


def loss(model: nn.Module, seed: int) -> Tensor:
    x = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    out: Tensor = model(x)
    return out.square().sum()


def test_flat_parameters_change_no_value_and_hold_all_gradients() -> None:
    model = network()
    before = loss(model, 0).item()
    flat = FlatParameters(model.parameters())
    assert loss(model, 0).item() == before
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    loss(model, 0).backward()
    expected = torch.autograd.grad(loss(model, 0), list(model.parameters()))
    assert flat.grad.square().sum().item() == pytest.approx(sum(x.square().sum().item() for x in expected))
    flat.data.zero_()
    assert all(not parameter.any() for parameter in model.parameters())
    flat.zero_grad()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [(Adam, torch.optim.Adam, {}), (RMSprop, torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5})],
)
def test_steps_are_those_of_torch(ours: Any, theirs: Any, settings: dict[str, float]) -> None:
    model = network()
    reference = copy.deepcopy(model)
    flat = FlatParameters(model.parameters())
    optimizer, peer = ours(flat, lr=1e-2), theirs(reference.parameters(), lr=1e-2, **settings)
    for step in range(20):
        factor = 1.0 - step / 20
        flat.zero_grad()
        loss(model, step).backward()
        optimizer.step(factor)
        peer.zero_grad()
        loss(reference, step).backward()
        peer.param_groups[0]["lr"] = 1e-2 * factor
        peer.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_a_restored_optimizer_takes_the_same_next_step(kind: Any) -> None:
    model = network()
    flat = FlatParameters(model.parameters())
    optimizer = kind(flat, lr=1e-2)
    for step in range(3):
        flat.zero_grad()
        loss(model, step).backward()
        optimizer.step()
    twin = copy.deepcopy(model)
    twin_flat = FlatParameters(twin.parameters())
    restored = kind(twin_flat, lr=1e-2)
    restored.load_state_dict({name: x.clone() for name, x in optimizer.state_dict().items()})
    for one, its, of in ((model, flat, optimizer), (twin, twin_flat, restored)):
        its.zero_grad()
        loss(one, 9).backward()
        of.step()
    assert torch.equal(flat.data, twin_flat.data)
    other = kind(FlatParameters(nn.Linear(2, 2).parameters()), lr=1e-2)
    with pytest.raises(ValueError, match="there are 6"):
        other.load_state_dict(optimizer.state_dict())


def test_clipping_scales_all_parts_by_their_common_norm() -> None:
    parts = [FlatParameters(nn.Linear(2, 2).parameters()) for _ in range(2)]
    for part, value in zip(parts, (1.0, 3.0), strict=True):
        part.grad.fill_(value)
    norm = math.sqrt(6 * 1.0 + 6 * 9.0)
    assert clip_norm_(parts, 100.0) == pytest.approx(norm)
    assert parts[1].grad[0] == 3.0
    assert clip_norm_(parts, 0.5) == pytest.approx(norm)
    assert torch.cat([part.grad for part in parts]).norm().item() == pytest.approx(0.5)
    assert (parts[1].grad[0] / parts[0].grad[0]).item() == pytest.approx(3.0)
