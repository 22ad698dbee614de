"""Shared set-up of the suite."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ["RELAX_RL_CACHE"] = ""  # what earlier runs have compiled decides nothing here
