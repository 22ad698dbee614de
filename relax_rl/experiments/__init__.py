"""Experiments of the estimators' papers: the toy problem and discrete variational autoencoders."""
