"""Load generation and measurements against a running gateway."""
