"""Runs: a folder with settings, curves and checkpoints, begun anew or gone on with, for anything that has `state` and `load`.

What others need to find and read a run's files is named here; it imports nothing heavy.
"""

from relax_rl.compute.serialization import write_json
from relax_rl.runs.folder import RunFolder, default_run_dir
from relax_rl.runs.record import read_config, read_record, versions, write_config

__all__ = [
    "RunFolder",
    "default_run_dir",
    "read_config",
    "read_record",
    "versions",
    "write_config",
    "write_json",
]
