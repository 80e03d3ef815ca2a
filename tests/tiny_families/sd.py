"""Stable Diffusion, tiny."""

from tiny_families import parts
from tiny_sd import tiny_sd

SIZES = parts.SIZES
reconstruct = parts.reconstruct
SETTINGS = {}


def build(published):
    pipeline = tiny_sd()
    pipeline.scheduler = parts.scheduler(published.scheduler)
    return pipeline


def sample(pipeline, prompts, z, size, num_steps, guidance, **options):
    return parts.stock(pipeline, prompts, z, size, num_inference_steps=num_steps, guidance_scale=guidance, **options)
