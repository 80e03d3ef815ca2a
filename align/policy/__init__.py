"""Roles on one network: adapters, what is trainable, noise as a trainable, drawing by a role."""
