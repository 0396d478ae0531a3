"""Models that are loaded when they will be wanted, and unloaded when their memory is worth more elsewhere."""
