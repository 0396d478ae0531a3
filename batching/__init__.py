"""Requests become batches, and batches become replies again."""
