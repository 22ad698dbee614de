"""How tensors are worked on: flat parameters and their optimisers, compiled and recorded functions."""
