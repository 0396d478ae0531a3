"""Models on servers that speak the Open Inference Protocol v2, and its tensors as they travel, both ways."""
