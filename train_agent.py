"""Train and evaluate agents: `python train_agent.py --env CartPole-v1 --estimator relax`."""

import sys

from relax_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
