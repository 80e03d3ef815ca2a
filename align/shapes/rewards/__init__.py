"""Rewards that know the truth of the shapes world; none carries a gradient."""
