"""Discrete variational autoencoders: sigmoid belief networks trained with any of the package's gradient estimators."""
