"""Recorded updates of agents, of the VAE's estimators and of the toy's contestants, to be reproduced number by number."""
