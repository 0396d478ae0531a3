"""Pure decisions: which route, which stage, and whether an answer is sure enough."""
