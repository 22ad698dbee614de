"""How noisy a frozen agent's policy gradient is under each estimator, and where the noise comes from."""
