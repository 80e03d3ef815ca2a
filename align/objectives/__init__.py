"""Objectives: one method a file; an objective owns its forward passes and returns a Loss."""
