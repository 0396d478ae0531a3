"""The demo: an intake desk on real models, real data and recorded people."""
