"""What rows of experience are worth: advantages and returns, cut at the ends of episodes.

All take `[T, N]` tensors: T steps of N environments. `next_value` is V of the true successor of each step, also where a
truncated episode ends; a terminated one has none. Rows that are not `valid` are no transitions and get 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["VTrace", "gae", "n_step_returns", "successor_values", "values_in_time", "vtrace"]


def successor_values(value: Tensor, final_value: Tensor, final_index: Tensor) -> Tensor:
    """V of the true successor of every step.

    Args:
        value: `[T + 1, N]` V at the observations of a rollout.
        final_value: `[K]` V at its `final_obs`.
        final_index: `[K, 2]` where they belong.

    Returns:
        `[T, N]`
    """
    next_value = value[1:]
    if final_index.shape[0] == 0:
        return next_value
    next_value = next_value.clone()
    next_value[final_index[:, 0], final_index[:, 1]] = final_value
    return next_value


def values_in_time(value: Tensor, num_envs: int, final_index: Tensor) -> tuple[Tensor, Tensor]:
    """`[T + 1, N]` V of a rollout's observations, and `[T, N]` of the true successors.

    Args:
        value: `[(T + 1) N + K]` of all observations, then of the final ones.
        num_envs: N.
        final_index: `[K, 2]` where those belong.
    """
    body = value.shape[0] - final_index.shape[0]
    values = value[:body].view(-1, num_envs)
    return values, successor_values(values, value[body:], final_index)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), cut at the ends of episodes.

        delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1}

    A truncated episode bootstraps from its true last observation; a row that is not valid has advantage 0.

    Args:
        reward, value, next_value: `[T, N]` r_t, V(s_t) and V of the true successor.
        terminated, truncated, valid: `[T, N]` booleans.
        gamma, gae_lambda: discount and lambda, from 0 to 1.

    Returns:
        `[T, N]` advantages, without a graph.

    Raises:
        ValueError: when a tensor has another shape.
    """
    # On the host: for arrays as small as these NumPy's calls cost a third of torch's.
    r, v, next_v, over, cut, ok = _on_host(
        _real(reward, value), value, next_value, terminated.bool(), truncated.bool(), valid.bool()
    )
    delta = np.where(ok, r + np.where(over, 0.0, gamma * next_v) - v, 0.0)
    decay = (gamma * gae_lambda) * (ok & ~over & ~cut)
    return torch.from_numpy(_accumulated(delta, decay)).to(value.device, _type_of(reward, value))


def n_step_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    n: int,
    gamma: float | Tensor,
) -> Tensor:
    """Rewards of up to n steps, and V after them (Sutton and Barto 2018, eq. 7.1).

        G_t = r_t + gamma r_{t+1} + ... + gamma^{m-1} r_{t+m-1} + gamma^m V(s_{t+m})

    with m = n, or fewer where the episode or the rollout ends before; without V where it terminated.

    Args:
        reward, next_value: `[T, N]` r_t and V of the true successor.
        terminated, truncated, valid: `[T, N]` booleans.
        n: at least 1; T or more goes up to the end of the rollout.
        gamma: the discount, or `[T, N]` one for each step.

    Returns:
        `[T, N]`

    Raises:
        ValueError: when n is below 1, or a tensor has another shape.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected a number of steps of at least 1")
    r, next_v, over, cut, ok = _on_host(
        _real(reward, next_value), next_value, terminated.bool(), truncated.bool(), valid.bool()
    )
    discount = _discounts(gamma, r) * ~over
    ends = over | cut | ~ok
    ends[-1] = True
    found = np.where(ok, r + discount * np.where(over, 0.0, next_v), 0.0)  # of one step
    for _ in range(min(n, len(r)) - 1):
        # Of k + 1 steps: a reward, and what the row after it has of k.
        found[:-1] = np.where(ends[:-1], found[:-1], r[:-1] + discount[:-1] * found[1:])
    return torch.from_numpy(found).to(next_value.device, _type_of(reward, next_value))


@dataclass(frozen=True)
class VTrace:
    """What V-trace says of rows that another policy has collected.

    Attributes:
        target: `[T, N]` v_t, what V is regressed on; V itself on rows that are not valid.
        advantage: `[T, N]` what the score is weighted by, rho_t (r_t + gamma v_{t+1} - V(s_t)).
        worth: `[T, N]` of the action that was taken, r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda v_{t+1}), what q(s_t, a_t) is
            regressed on: the ratio of its own probabilities is no part of that.
    """

    target: Tensor
    advantage: Tensor
    worth: Tensor


def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float | Tensor,
    gae_lambda: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg_rho: float = 1.0,
) -> VTrace:
    """V-trace (Espeholt et al. 2018, eq. 1 and section 4.2), cut at the ends of episodes as `gae` is.

        delta_t = min(clip_rho, ratio_t) (r_t + gamma V(s_{t+1}) - V(s_t))
        v_t     = V(s_t) + delta_t + gamma c_t (v_{t+1} - V(s_{t+1})),    c_t = lambda min(clip_c, ratio_t)

    With ratios of 1 target and worth are the lambda-return, and for lambda 1 the advantage is that of `gae`.

    Args:
        log_ratio: `[T, N]` log-probability of each action under the policy that learns, minus that under the one that
            acted.
        reward, value, next_value: `[T, N]` r_t, V(s_t) and V of the true successor.
        terminated, truncated, valid: `[T, N]` booleans.
        gamma: the discount, or `[T, N]` one for each step.
        gae_lambda: 1 in the paper; less trusts V more (remark 2).
        clip_rho, clip_c: where ratios are cut, which decides what v is the value of, and how fast it is found.
        clip_pg_rho: where they are cut in front of the advantage.

    Returns:
        Targets, advantages and worths, without a graph.

    Raises:
        ValueError: when a tensor has another shape.
    """
    flags = (x.bool() for x in (terminated, truncated, valid))
    log_rho, r, v, next_v, over, cut, ok = _on_host(log_ratio, _real(reward, value), value, next_value, *flags)
    rho = np.exp(np.where(ok, log_rho, 0.0))
    discount = _discounts(gamma, r) * ~over
    bootstrap = np.where(over, 0.0, next_v)
    delta = np.where(ok, np.minimum(clip_rho, rho) * (r + discount * bootstrap - v), 0.0)
    decay = discount * gae_lambda * np.minimum(clip_c, rho) * (ok & ~cut)
    error = _accumulated(delta, decay)  # v_t - V(s_t)
    following = bootstrap.astype(delta.dtype)
    following[:-1] += np.where(ok & ~over & ~cut, 1.0, 0.0)[:-1] * error[1:]
    advantage = np.where(ok, np.minimum(clip_pg_rho, rho) * (r + discount * following - v), 0.0)
    worth = np.where(ok, r + discount * (bootstrap + gae_lambda * (following - bootstrap)), v)
    kind = _type_of(reward, value)
    return VTrace(*(torch.from_numpy(x).to(value.device, kind) for x in (v + error, advantage, worth)))


def _accumulated(delta: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """x_t = delta_t + decay_t x_{t+1} of `[T, N]`, from the last row back; nothing follows it."""
    found = np.empty_like(delta)
    last = np.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        last = delta[t] + decay[t] * last
        found[t] = last
    return found


def _real(reward: Tensor, value: Tensor) -> Tensor:
    """Rewards, whole numbers in the type of V: a discount in theirs would be 0."""
    return reward if reward.is_floating_point() else reward.to(value.dtype)


def _type_of(reward: Tensor, value: Tensor) -> torch.dtype:
    """That of what is made of both."""
    return torch.promote_types(reward.dtype, value.dtype)


def _on_host(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as arrays, which have to be of one shape `[T, N]`; without a graph."""
    shapes = {tuple(x.shape) for x in tensors}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise ValueError(f"tensors of shapes {sorted(shapes)}, expected all of them [T, N], steps of environments")
    return [_array(x) for x in tensors]


def _array(x: Tensor) -> np.ndarray:
    """A tensor without its graph; NumPy has no bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def _discounts(gamma: float | Tensor, like: np.ndarray) -> np.ndarray:
    """`[T, N]`"""
    each = _array(gamma) if isinstance(gamma, Tensor) else gamma
    return np.broadcast_to(np.asarray(each, dtype=like.dtype), like.shape)
