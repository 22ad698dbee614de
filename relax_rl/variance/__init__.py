"""The variance of the gradient that an agent applies: under every estimator, by its origins, and drawn."""
