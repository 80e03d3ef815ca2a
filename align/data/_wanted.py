"""What an objective wants of a rollout; it says so in its attribute `wanted`, and the source keeps no more."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """One row of an update is one step of the window of one image, or one of `draws` looks at one image."""

    transitions: bool = False
    """Keep x_t, x_s and log p(x_s | x_t) of the window's steps; else the finished latents alone."""
    means: bool = False
    """Keep the transitions' means too."""
    states: bool = False
    """Keep all states of deterministic steps; a row is one of them, as many an image as data.train_fraction says."""
    draws: int = 1
    """Without transitions: rows of an image."""
    role: str = "train"
    """The role that draws."""
