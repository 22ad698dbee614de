"""Learning and throughput measurements of relax_rl beside Stable-Baselines3, see README.md in this folder."""
