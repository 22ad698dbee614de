"""Final bounds of the discrete VAE as published, by row and estimator, in nats per image."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PUBLISHED_TRAIN", "PUBLISHED_VALID"]

PUBLISHED_TRAIN: Mapping[str, Mapping[str, float]] = {
    "mnist-linear1": {
        "concrete": -111.3,
        "nvil": -112.5,
        "muprop": -111.7,
        "rebar": -111.6,
        "relax-published": -111.20,
    },
    "mnist-linear2": {"concrete": -99.62, "nvil": -99.6, "muprop": -99.07, "rebar": -98.22, "relax-published": -98.00},
    "mnist-nonlinear": {"concrete": -102.2, "nvil": -101.5, "muprop": -101.1, "rebar": -101.1},
    "mnist-nonlinear-wide": {"rebar": -81.01, "relax-published": -78.13},
    "omniglot-linear1": {
        "concrete": -117.23,
        "nvil": -117.44,
        "muprop": -117.09,
        "rebar": -116.63,
        "relax-published": -116.57,
    },
    "omniglot-linear2": {
        "concrete": -109.95,
        "nvil": -109.98,
        "muprop": -109.55,
        "rebar": -108.71,
        "relax-published": -108.54,
    },
    "omniglot-nonlinear": {"concrete": -110.4, "nvil": -109.58, "muprop": -108.72, "rebar": -108.72},
    "omniglot-nonlinear-wide": {"rebar": -56.76, "relax-published": -56.12},
}
"""Training bounds after 2,000,000 steps (Tucker et al. 2017; Grathwohl et al. 2018). The latter's nonlinear REBAR and
RELAX have decoders with 784 hidden units, and stand in the wide rows."""

PUBLISHED_VALID: Mapping[str, Mapping[str, float]] = {
    "mnist-linear1": {"rebar": -114.32, "relax-published": -113.62},
    "mnist-linear2": {"rebar": -101.20, "relax-published": -100.85},
    "mnist-nonlinear-wide": {"rebar": -111.12, "relax-published": -119.19},
    "omniglot-linear1": {"rebar": -122.44, "relax-published": -122.11},
    "omniglot-linear2": {"rebar": -115.83, "relax-published": -115.42},
    "omniglot-nonlinear-wide": {"rebar": -127.51, "relax-published": -128.20},
}
"""Validation bounds with 100 importance samples at the end of training (Grathwohl et al. 2018)."""
