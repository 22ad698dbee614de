"""Flat parameters, and optimisers on them beside torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relax_rl.compute.optimizers import Adam, FlatParameters, RMSprop, clip_scale
from relax_rl.errors import SettingsError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)).to(memory_format=torch.channels_last)


def loss(model: nn.Module, seed: int) -> Tensor:
    x = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    out: Tensor = model(x)
    return out.square().sum()


def gradient_of(model: nn.Module, flat: FlatParameters, seed: int) -> Tensor:
    return flat.flatten(torch.autograd.grad(loss(model, seed), list(model.parameters())))


def test_flat_parameters_change_no_value_and_lie_as_the_parameters_do() -> None:
    model = network()
    before = loss(model, 0).item()
    flat = FlatParameters(model.parameters())
    assert loss(model, 0).item() == before
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(flat.flatten(flat.parameters), flat.data)
    leaves = flat.unflatten(flat.data)
    for leaf, parameter in zip(leaves, flat.parameters, strict=True):
        assert torch.equal(leaf, parameter) and leaf.is_leaf and leaf.requires_grad
        assert leaf.data_ptr() == parameter.data_ptr()
    flat.data.zero_()
    assert all(not parameter.any() for parameter in model.parameters())


DECAYING: dict[str, Any] = {"betas": (0.8, 0.99), "eps": 1e-4}


@pytest.mark.parametrize(
    ("ours", "own", "theirs", "settings"),
    [
        (Adam, {}, torch.optim.Adam, {}),
        (Adam, {**DECAYING, "decay": 0.1}, torch.optim.Adam, {**DECAYING, "weight_decay": 0.1}),
        (RMSprop, {}, torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5}),
    ],
)
def test_steps_are_those_of_torch(ours: Any, own: dict[str, Any], theirs: Any, settings: dict[str, Any]) -> None:
    model = network()
    reference = copy.deepcopy(model)
    flat = FlatParameters(model.parameters())
    optimizer, peer = ours(flat, lr=1e-2, **own), theirs(reference.parameters(), lr=1e-2, **settings)
    for step in range(20):
        factor = 1.0 - step / 20
        optimizer.step(gradient_of(model, flat, step), factor)
        peer.zero_grad()
        loss(reference, step).backward()
        peer.param_groups[0]["lr"] = 1e-2 * factor
        peer.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_the_state_of_other_parameters_is_refused(kind: Any) -> None:
    here, there = (kind(FlatParameters(module.parameters()), lr=1e-2) for module in (network(), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="there are 6"):
        there.load_state_dict(here.state_dict())


def test_clipping_bounds_the_norm() -> None:
    for norm, expected in ((0.4, 1.0), (0.5, 1.0), (5.0, 0.1), (float("inf"), 0.0)):
        assert clip_scale(torch.tensor(norm), 0.5).item() == pytest.approx(expected)
    assert (
        clip_scale(torch.tensor(0.0), 0.5).item() == 1.0 and clip_scale(torch.tensor(3.0), float("inf")).item() == 1.0
    )


def test_slices_of_larger_tensors_keep_their_numbers_and_get_memory_of_their_own() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    slices = [whole[:, :3], whole[::2], whole[:, 2:3], whole.t(), torch.full((20,), -1.0), whole[:1, :1].expand(2, 2)]
    parameters = [nn.Parameter(each) for each in slices]
    flat = FlatParameters(parameters)
    for parameter, each in zip(parameters, slices, strict=True):
        assert torch.equal(parameter.detach(), each)
    assert flat.data.numel() == sum(each.numel() for each in slices) and flat.hold()
    flat.data.copy_(torch.arange(float(flat.data.numel())))
    assert sorted(x for each in parameters for x in each.flatten().tolist()) == flat.data.tolist()
    leaves = flat.unflatten(flat.data)
    assert all(torch.equal(leaf, parameter) for leaf, parameter in zip(leaves, parameters, strict=True))
    assert torch.equal(flat.flatten(list(leaves)), flat.data)


def test_parameters_of_two_types_are_refused() -> None:
    both = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    with pytest.raises(SettingsError, match=r"parameters are of torch\.float32 and torch\.float64, expected one type"):
        FlatParameters(both)
