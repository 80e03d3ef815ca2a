"""Rewards that read noisy latents by a diffusion model's own features: no image is decoded."""
