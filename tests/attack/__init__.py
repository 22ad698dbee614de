"""The standing attack: kills, damaged files, command lines and faulty environments, each trial made from one seed.

python -m tests.attack [--seed N] [--only NAME]      # all of it; `make soak` calls it
python -m tests.attack --only NAME:NUMBER            # a single trial again
"""

from tests.attack.command_lines import COMMAND_LINES
from tests.attack.endurance import ENDURANCE
from tests.attack.environments import ENVIRONMENTS
from tests.attack.kills import KILLS
from tests.attack.mutations import MUTATIONS

__all__ = ["ATTACKS"]

ATTACKS = (KILLS, MUTATIONS, COMMAND_LINES, ENVIRONMENTS, ENDURANCE)
"""All attacks, in the order of the report."""
