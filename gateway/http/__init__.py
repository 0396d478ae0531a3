"""The HTTP data plane, without I/O, and the ASGI adapter that serves it."""
