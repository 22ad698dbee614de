"""`python -m relax_rl`: the command line."""

import sys

from relax_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
