"""Measurements behind the defaults and the claims of the documentation; each prints where its results are."""
