"""Sequences of categorical variables, each given those before it: sampling, and REINFORCE with leave-one-out baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions import Categorical
from relax_rl.distributions.checks import on_host
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import check_rows
from relax_rl.estimators.score import check_num_samples, leave_one_out

__all__ = ["Sequences", "sample_sequences", "sequence_rloo"]

Step = Callable[[Any, Tensor | None], tuple[Tensor, Any]]
"""From a state and the last tokens `[*]` (none at first) to logits `[*, V]` of the next ones, and the next state."""


@dataclass(frozen=True)
class Sequences:
    """Tokens that were drawn, and what they were drawn from.

    Attributes:
        tokens: `[*, T]` indices; after the end of a sequence its end token, or 0.
        logits: `[*, T, V]` they were drawn from, with the graph that leads to theta.
        mask: `[*, T]` whether a token was drawn; the end token was.
    """

    tokens: Tensor
    logits: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """`[*]` how many tokens were drawn, the end token among them."""
        return self.mask.sum(-1)

    @property
    def token_log_probs(self) -> Tensor:
        """`[*, T]` log-probability of each token given those before it; 0 after the end."""
        return torch.where(self.mask, Categorical(self.logits).log_prob(self.tokens), torch.zeros(()).to(self.logits))

    @property
    def log_prob(self) -> Tensor:
        """`[*]` log-probability of the sequence."""
        return self.token_log_probs.sum(-1)


def sample_sequences(
    step: Step,
    state: Any = None,
    *,
    max_length: int,
    end: int | None = None,
    generator: torch.Generator | None = None,
) -> Sequences:
    """Draw token after token from an autoregressive model.

    Args:
        step: from a state and the tokens `[*]` drawn last, None at the start, to logits `[*, V]` and the next state. Logits
            of -inf mask tokens. It is asked for rows that have ended too, whose logits do not count.
        state: the first one, anything.
        max_length: T, at least 1; fewer where all rows have ended before.
        end: the token that ends a sequence; none for sequences of equal length.
        generator: of the draws; torch's global one by default.

    Returns:
        the tokens, and the logits they were drawn from.

    Raises:
        ValueError: when max_length is below 1, or a row that goes on has all of its tokens masked.
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1")
    token: Tensor | None = None
    alive: Tensor | None = None
    tokens, every_logits, masks = [], [], []
    for _ in range(max_length):
        logits, state = step(state, token)
        if alive is None:
            alive = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        logits = torch.where(alive.unsqueeze(-1), logits, torch.zeros_like(logits))
        dist = Categorical(logits.detach())
        drawn = dist.threshold(dist.relax(dist.sample_noise(generator)))
        token = torch.where(alive, drawn, torch.full_like(drawn, 0 if end is None else end))
        tokens.append(token)
        every_logits.append(logits)
        masks.append(alive)
        if end is not None:
            alive = alive & (token != end)
            if on_host(alive) and not bool(alive.any()):
                break
    return Sequences(torch.stack(tokens, -1), torch.stack(every_logits, -2), torch.stack(masks, -1))


def sequence_rloo(value: Tensor, sequences: Sequences, *, token_weight: Tensor | float = 1.0) -> Estimate:
    """REINFORCE over sequences with leave-one-out baselines (Kool et al. 2019; Ahmadian et al. 2024).

        g = sum_t w_t (R_kt - mean_{j != k} R_jt) dlog p(b_kt | b_k,<t),    R_kt = sum of rewards from t on

    Unbiased for the expected reward with token weights of 1, and for rewards of single tokens, of which a token is credited
    with none that came before it. Weights that depend on the position alone are those of other objectives, such as
    discounting; weights that depend on the sequence, as 1 / length does, bias the estimate.

    Args:
        value: rewards `[K, *]` of K independent sequences each, or `[K, *, T]` of their tokens; no gradient flows into it.
        sequences: with tokens `[K, *, T]`.
        token_weight: a number, or what broadcasts to `[K, *, T]`.

    Returns:
        the estimate at the logits, `[K, *, T V]`; its `value` is the reward `[K, *]` of each sequence, and its `backward` adds
        the gradient of the mean reward.

    Raises:
        ValueError: with fewer than two sequences, or when the rewards have other rows.
    """
    tokens, mask = sequences.tokens, sequences.mask
    rows = tokens.shape[:-1]
    check_num_samples(tokens.shape[0] if rows else 0)
    value = value.detach().to(sequences.logits.dtype)
    if value.shape == tokens.shape and value.dim() > len(rows):
        rewards = value * mask
        to_go = rewards.flip(-1).cumsum(-1).flip(-1)
        total = rewards.sum(-1)
    else:
        check_rows(rows, value=value)
        to_go, total = value.unsqueeze(-1), value
    signal = leave_one_out(to_go) * mask * token_weight
    grad = signal.unsqueeze(-1) * Categorical(sequences.logits.detach()).score(tokens)
    return Estimate(tokens, total, grad.flatten(-2), sequences.logits.flatten(-2))
