"""What a VAE run says of where it stands."""

from __future__ import annotations

import math

__all__ = ["describe_bounds"]


def describe_bounds(train: float, valid: float) -> str:
    """`train bound -100.12, validation -101.30`; nothing for what is not known yet."""
    known = [
        f"{name} {value:.2f}"
        for name, value in (("train bound", train), ("validation", valid))
        if not math.isnan(value)
    ]
    return ", ".join(known) or "no bound yet"
