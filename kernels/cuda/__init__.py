"""Kernels for CUDA devices: sources that compile without a device, and what runs them where CuPy and a device are.

`sources` and `layout` need neither; `device` imports CuPy, and is imported by nobody who has not asked for a device.
"""
