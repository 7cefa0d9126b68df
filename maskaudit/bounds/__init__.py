"""Bounds on what a network can answer inside a ball, and exact searches that use them.

`capture` reads a model as a `Network` of affine steps and monotone activations; `linear` bounds it (interval and
CROWN bounds), `certificate` proves points robust with them, `branching` and `exact` search for counterexamples.
"""
