"""The gateway: edges, pipeline, review, store, telemetry, security, settings and the command line."""
