"""A video autoencoder on one frame, as Qwen-Image and Krea 2 have it."""

from torch import Tensor

from align.models._base import Posterior
from align.models._codec import KLCodec


class FrameCodec(KLCodec):
    """AutoencoderKLQwenImage on one frame, its latents normalised channel by channel."""

    def sizes(self) -> tuple[int, int]:
        return 2 ** len(self.vae.config.temperal_downsample), self.vae.config.z_dim

    def posterior(self, image: Tensor) -> Posterior:
        latents = self.vae.encode(image.unsqueeze(2)).latent_dist
        return Posterior(latents.mean.squeeze(2), latents.logvar.squeeze(2))

    def image(self, z: Tensor) -> Tensor:
        return self.vae.decode(z.unsqueeze(2), return_dict=False)[0].squeeze(2)
