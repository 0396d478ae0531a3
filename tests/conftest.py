"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow example on a busy machine is no failure; a test that hangs is, and pytest-timeout tells. CI tries the same
# examples every time, so that a change is judged by what it changes; on a developer's machine the search goes on.
settings.register_profile("pointsman", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pointsman")
