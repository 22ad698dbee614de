"""Sequences of categorical variables: exact gradients by enumeration, with masks, ends and rewards of tokens."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Categorical
from relax_rl.estimators import Sequences, sample_sequences, sequence_rloo
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, collect

T, V, END = 3, 3, 0
THETA = torch.randn((V + 1) * V, generator=seeded(0)) * 0.7


def step(theta: Tensor, token: Tensor | None) -> Tensor:
    """Logits by a table of the last token; token 2 is masked at the start, and after itself."""
    table = theta.reshape(*theta.shape[:-1], V + 1, V)
    row = torch.full(theta.shape[:-1], V) if token is None else token
    logits = table.gather(-2, row[..., None, None].expand(*row.shape, 1, V)).squeeze(-2)
    masked = (row == V) | (row == 2)
    hidden = torch.tensor([False, False, True]) & masked.unsqueeze(-1)
    return logits.masked_fill(hidden, -torch.inf)


def reward_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """`[*, T]` rewards of tokens, none after the end."""
    position = torch.arange(tokens.shape[-1])
    return (torch.sin(1.0 + 2.0 * tokens + position) + 0.4 * position) * mask


def drawn(theta: Tensor, generator: torch.Generator) -> Sequences:
    return sample_sequences(
        lambda state, token: (step(theta, token), state), max_length=T, end=END, generator=generator
    )


def exact_gradient(weights: Tensor) -> Tensor:
    """Of E[sum_t w_t times the rewards from t on, scored at t]: the true gradient where all weights are 1."""
    theta, total = THETA.double().clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for choice in itertools.product(range(V), repeat=T):
        length = choice.index(END) + 1 if END in choice else T
        if any(x != END for x in choice[length:]):
            continue
        tokens = torch.tensor(choice)
        mask = torch.arange(T) < length
        log_p = [Categorical(step(theta, tokens[t - 1] if t else None)).log_prob(tokens[t]) for t in range(length)]
        p = torch.stack(log_p).sum().exp().detach()
        if p == 0:
            continue
        reward = reward_of(tokens, mask).double()
        total = total + p * sum(weights[t] * reward[t:].sum() * log_p[t] for t in range(length))
    (gradient,) = torch.autograd.grad(total, theta)
    return gradient


@pytest.mark.parametrize(
    "by_token, weights", [(False, [1.0, 1.0, 1.0]), (True, [1.0, 1.0, 1.0]), (True, [1.0, 0.9, 0.81])]
)
def test_leave_one_out_over_sequences_is_unbiased(by_token: bool, weights: list[float]) -> None:
    generator, samples = seeded(1), 4

    def draw(count: int) -> Tensor:
        theta = THETA.expand(samples, count, -1).clone().requires_grad_()
        found = drawn(theta, generator)
        rewards = reward_of(found.tokens, found.mask)
        value = rewards if by_token else rewards.sum(-1)
        estimate = sequence_rloo(value, found, token_weight=torch.tensor(weights)[: found.tokens.shape[-1]])
        estimate.backward(1.0)
        assert theta.grad is not None
        return theta.grad.mean(0)

    exact = exact_gradient(torch.tensor(weights, dtype=torch.float64))
    assert_unbiased(collect(draw, 150_000, 25_000), exact, power=0.05)


def test_what_was_drawn_is_what_it_says() -> None:
    theta = THETA.expand(5_000, -1)
    found = drawn(theta, seeded(2))
    assert found.tokens.shape == found.mask.shape == (5_000, T) and found.logits.shape == (5_000, T, V)
    ended = (found.tokens == END).cummax(-1)[0]
    assert (found.tokens[:, 0] != 2).all() and (found.tokens[ended] == END).all()
    assert torch.equal(found.mask[:, 1:], ~ended[:, :-1]) and found.mask[:, 0].all()
    assert torch.equal(found.lengths, (~ended).sum(-1) + ended.any(-1).long())
    by_hand = torch.zeros(5_000)
    for t in range(T):
        logits = step(theta, found.tokens[:, t - 1] if t else None)
        by_hand += torch.where(found.mask[:, t], Categorical(logits).log_prob(found.tokens[:, t]), torch.zeros(()))
    torch.testing.assert_close(found.log_prob, by_hand)
    assert found.log_prob.isfinite().all()


def test_sampling_stops_where_all_rows_have_ended() -> None:
    asked: list[Any] = []

    def ends(state: int, token: Tensor | None) -> tuple[Tensor, int]:
        asked.append(state)
        return torch.tensor([[5.0, -torch.inf], [0.0, -torch.inf]]), state + 1

    found = sample_sequences(ends, 0, max_length=10, end=0)
    assert asked == [0] and found.tokens.shape == (2, 1)
    assert sample_sequences(ends, 0, max_length=4).tokens.shape == (2, 4)


def test_rewards_of_tokens_leave_out_the_noise_of_those_before() -> None:
    """Independent tokens whose rewards are their own: half of the noise is that of earlier ones."""
    found = sample_sequences(lambda state, token: (torch.zeros(4, 5_000, V), state), max_length=8, generator=seeded(3))
    rewards = found.tokens.float()
    whole, by_token = (sequence_rloo(value, found).grad.mean(0).var(0).sum() for value in (rewards.sum(-1), rewards))
    assert float(by_token) < 0.7 * float(whole)


def test_what_is_refused() -> None:
    found = drawn(THETA.expand(2, 3, -1), seeded(4))
    with pytest.raises(ValueError, match="value has shape"):
        sequence_rloo(torch.zeros(2), found)
    with pytest.raises(ValueError, match="num_samples is 1"):
        sequence_rloo(torch.zeros(1, 3), drawn(THETA.expand(1, 3, -1), seeded(4)))
    with pytest.raises(ValueError, match="max_length is 0"):
        sample_sequences(lambda state, token: (torch.zeros(2, 2), state), max_length=0)
    with pytest.raises(ValueError, match="allow no outcome"):
        sample_sequences(lambda state, token: (torch.full((2, 2), -torch.inf), state), max_length=2)
