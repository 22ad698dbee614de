"""The command line under its old name; see `relax_rl.commands`."""

from relax_rl.commands.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
