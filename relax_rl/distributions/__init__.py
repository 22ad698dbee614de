"""Distributions with a relaxed sample, a threshold and a conditional relaxed sample.

Each one is a frozen record of its unconstrained `params` and offers what a control variate through a relaxation needs:

    z  = relax(noise)           reparameterised sample, differentiable in `params`
    b  = threshold(z)           H: the outcome itself
    z~ = relax_given(b, noise)  z~ ~ p(z | b), differentiable in `params`; noise independent of the one behind b

so that H(z) = b, H(z~) = b, and z~ has the same marginal as z (Tucker et al. 2017; Grathwohl et al. 2018, appendix B).
Noise is standard (Gumbel, logistic or normal) and free of `params`: store it and the sample can be rebuilt exactly.
All formulas use exponentials of normalised log-probabilities and stay finite for logits from -80 to 80 in float32, and
for infinite logits, which mask a choice or fix a bit.
"""

from relax_rl.distributions.bernoulli import Bernoulli
from relax_rl.distributions.beta import Beta
from relax_rl.distributions.categorical import Categorical
from relax_rl.distributions.counts import Binomial, Geometric, NegativeBinomial, Poisson
from relax_rl.distributions.from_torch import TorchDistribution, from_torch
from relax_rl.distributions.gaussian import DiagGaussian, TanhGaussian
from relax_rl.distributions.matching import Matching
from relax_rl.distributions.multi_categorical import MultiCategorical
from relax_rl.distributions.noise import gumbel_noise, logistic_noise
from relax_rl.distributions.ordinal import Ordinal
from relax_rl.distributions.plackett_luce import PlackettLuce
from relax_rl.distributions.positive import Dirichlet, Gamma
from relax_rl.distributions.product import Product
from relax_rl.distributions.protocols import (
    Distribution,
    FiniteDistribution,
    RelaxedDistribution,
    SlopedDistribution,
    SlopedRelaxation,
)
from relax_rl.distributions.subset import Subset

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "DiagGaussian",
    "Dirichlet",
    "Distribution",
    "FiniteDistribution",
    "Gamma",
    "Geometric",
    "Matching",
    "MultiCategorical",
    "NegativeBinomial",
    "Ordinal",
    "PlackettLuce",
    "Poisson",
    "Product",
    "RelaxedDistribution",
    "SlopedDistribution",
    "SlopedRelaxation",
    "Subset",
    "TanhGaussian",
    "TorchDistribution",
    "from_torch",
    "gumbel_noise",
    "logistic_noise",
]
