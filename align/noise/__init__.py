"""Noise optimisation at inference (ReNO), best-of and redraw: nothing is trained but the noise."""
