"""The null model as each framework serves it, as its documentation shows; every file runs in a process of its own.

The files of the peers run in the peers' environments and see nothing of this project: each is a script, or a module
that the framework's own command loads. `x`, FP32 [16], goes in, `y`, twice as much, comes out, computed by NumPy.
"""
