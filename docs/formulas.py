"""The registry's formulas as the site typesets them; in a terminal they stand as `describe(name).formula` has them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FORMULAS", "typeset"]

_BOUND = r"$L = \log \frac{1}{K} \sum_k w_k$"
_MUPROP = r"f'(\mu)"
_OBJECTIVE = r"$c = f(\sigma(z / \tau)) + r(z)$"
FORMULAS: Mapping[str, str] = {
    "reinforce": r"$(f(b) - B)\, s$",
    "nvil": r"$(f(b) - m - B(x))\, s \,/ \max(1, \mathrm{std})$",
    "rloo": r"$\frac{1}{K} \sum_k \bigl(f_k - \frac{1}{K - 1} \sum_{j \ne k} f_j\bigr)\, s_k$",
    "vimco": rf"$\sum_k (L - L_{{-k}})\, s_k$, {_BOUND}",
    "simple-muprop": r"$(f(b) - \eta f(\mu) - B)\, s$",
    "muprop": rf"$(f(b) - \eta f(\mu) - \eta_1 {_MUPROP} (b - \mu))\, s + \eta_1 {_MUPROP} \nabla \mu$",
    "reparameterized": r"$\nabla f(T(\theta, \varepsilon))$",
    "rejection": (
        r"$f'(b) \nabla h(\varepsilon) + f(b) \nabla [\log q(h(\varepsilon)) + \log h'(\varepsilon)]$, "
        r"$b = h(\varepsilon)$ accepted"
    ),
    "dreg": (
        r"$\sum_k \bigl(w_k / \sum_j w_j\bigr)^2 \frac{\partial \log w_k}{\partial b_k} \nabla T(\theta, \varepsilon_k)$, "
        + _BOUND
    ),
    "concrete": r"$\nabla f(\sigma(z / \tau))$",
    "straight-through": r"$f'(b) \nabla \mu$",
    "straight-through-gumbel": r"$f'(b) \nabla \sigma(z / \tau)$",
    "gumbel-rao": r"$f'(b) \frac{1}{m} \sum_k \nabla \sigma(\tilde z_k / \tau)$",
    "reinmax": r"$2 J(\frac{p + b}{2}) f'(b) - \frac{1}{2} J(p) f'(b)$",
    "lax": r"$(f(b) - c(b))\, s + \nabla c(b)$",
    "dlax": r"$f(b)\, s - c(z) \nabla \log p(z) + \nabla c(z)$",
    "rebar": (
        r"$(f(b) - \eta f(\sigma(\tilde z / \tau)))\, s + \eta \nabla [f(\sigma(z / \tau)) - f(\sigma(\tilde z / \tau))]$"
    ),
    "relax": r"$(f(b) - c(\tilde z))\, s + \nabla c(z) - \nabla c(\tilde z)$",
    "arm": r"$(f(1[u > 1 - p]) - f(1[u < p]))(u - \frac{1}{2})$",
    "disarm": r"$\frac{1}{2} (f(b) - f(\tilde b))(b - \tilde b)\, \sigma(\lvert \ell \rvert)$",
    "arms": r"$\frac{1}{K - 1} \sum_k (f_k - \bar f)(b_k - p) \frac{p (1 - p)}{p - P(b_i = b_j = 1)}$",
    "double-cv": (
        r"RLOO on $f_k + \alpha v_k$, less $\alpha \overline{f'}\, p (1 - p)$; "
        r"$v_k = \frac{1}{K - 1} \sum_{j \ne k} f'(b_j)(b_k - p)$"
    ),
    "rodeo": r"RLOO with baseline $f_j + \alpha (A h)(b_j)$, plus $\beta A(h s)(b_k)$, $A$ a Stein operator",
    "unordered-set": (
        r"$\sum_{i \in S} p_i R(S, i) \bigl(f_i - \sum_{j \in S} p_j R(S \setminus i, j) f_j\bigr)\, s_i$, "
        r"$S$ of $K$ without replacement"
    ),
    "without-replacement": (
        r"$\sum_{i \in S} w_i \bigl(f_i - p_i f_i - \sum_{j \ne i} w_j f_j\bigr)\, s_i$, "
        r"$w_i = p_i / P(z_i > \text{the next } z)$"
    ),
    "marginal": r"$(f(b) - c(b))\, s + \nabla \sum_{b'} p(b') c(b')$",
    "enumerated": r"$\nabla \sum_b p(b) f(b)$",
}
"""By the estimator's name; s is the score and nabla the gradient at the parameters."""


def typeset(table: str) -> str:
    """The registry's table with its second column typeset."""
    head, rule, *rows = table.splitlines()
    found = [head, rule]
    for row in rows:
        name = row.split("`")[1]
        before, _, after = row.partition("` | ")
        rest = after.replace(r"\|", "").partition(" | ")[2].replace("c = f(sigma(z)) + r(z)", _OBJECTIVE)
        found.append(f"{before}` | {FORMULAS[name]} | {rest}")
    return "\n".join(found) + "\n"
