"""Batch sources: what an update is made of."""
