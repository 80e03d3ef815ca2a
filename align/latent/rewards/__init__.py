"""The rewards that read latents."""
