"""What the server says of itself."""

from __future__ import annotations

from importlib.metadata import version

SERVER_NAME = "pointsman"
SERVER_VERSION = version("pointsman")

EXTENSIONS = ("binary_tensor_data", "parameters")
"""The protocol's extensions that work here, and no others."""
