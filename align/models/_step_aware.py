"""A step-aware preference model: a CLIP whose image tower knows at which time t the image was predicted.

    score(image, prompt, t) = exp(scale) u_t . w           u_t, w: unit embeddings of the image at t, and of the prompt
    LayerNorm_t(h) = LayerNorm(h) (1 + a_l(t)) + b_l(t)    before attention and MLP of every layer l of the image tower
    a_l, b_l = linear_l(silu(MLP(sinusoids of t)))         linear_l is zero at the start: then it is its CLIP exactly

Liang et al., SPO, arXiv 2406.04314, section 3.2, in the form of Peebles & Xie's adaptive layer norm (DiT, arXiv
2212.09748, section 3.2). It is trained by align/objectives/spm.py, one for each base model.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.errors import UserError
from rewards._clip import HFClip

FILE_NAME, PREPROCESSING = "step_aware.safetensors", "preprocessor_config.json"
FREQUENCIES = 64  # sinusoids of t, each as sine and cosine


class Modulation(nn.Module):
    """t -> the scale and shift of one layer norm, (B, 1, D) each, kept in `value` for the hook on it."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear = nn.Linear(hidden, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.value: tuple[Tensor, Tensor] | None = None

    def set(self, code: Tensor) -> None:
        scale, shift = self.linear(code)[:, None].chunk(2, -1)
        self.value = scale, shift

    def hook(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        if self.value is None:
            return out
        scale, shift = self.value
        return out * (1 + scale) + shift


class StepAwareClip(nn.Module):
    """`source`: a CLIP to start from, a folder or a Hub id in transformers' format; `seed` is of the MLP of t, which
    has to start alike on all processes."""

    def __init__(self, source: str, *, seed: int = 0):
        super().__init__()
        self.source = source
        self.clip = HFClip(source)
        layers = self.clip.network.vision_model.encoder.layers
        width = self.clip.network.config.vision_config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        norms = [norm for layer in layers for norm in (layer.layer_norm1, layer.layer_norm2)]
        self.modulations = nn.ModuleList([Modulation(width, width) for _ in norms])
        for norm, modulation in zip(norms, self.modulations, strict=True):
            norm.register_forward_hook(modulation.hook)
        self.clip.requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        """The image tower, its projection and the modulation; the text tower stays as it is, so prompts stay cached."""
        parts = (self.clip.network.vision_model, self.clip.network.visual_projection, self.embed, self.modulations)
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, images: Tensor, prompts: Sequence[str], t: Tensor) -> Tensor:
        """Logits (B,) of B images (B, 3, H, W) in [0, 1] that were predicted at times t (B,) in [0, 1]."""
        code = self.embed(_sinusoids(t.to(images.device)).to(images.dtype))
        for modulation in self.modulations:
            modulation.set(code)  # type: ignore[operator]
        text = self.clip.prompts(prompts, images.device)
        return self.clip.logit_scale * (self.clip.images(images) * text).sum(-1)

    def save(self, folder: Path) -> None:
        """Writes a folder that `load` reads: the CLIP in transformers' format, the modulation beside it."""
        from transformers.utils.hub import cached_file

        folder.mkdir(parents=True, exist_ok=True)
        self.clip.network.save_pretrained(folder)
        self.clip.tokenizer.save_pretrained(folder)
        preprocessing = cached_file(self.source, PREPROCESSING)
        if preprocessing is not None and Path(preprocessing).parent.resolve() != folder.resolve():
            shutil.copyfile(preprocessing, folder / PREPROCESSING)
        parts = {n: t.contiguous() for n, t in self.state_dict().items() if not n.startswith("clip.")}
        save_file(parts, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: str | Path) -> "StepAwareClip":
        """What `save` wrote."""
        file = Path(folder).expanduser() / FILE_NAME
        if not file.is_file():
            raise UserError(f"{folder}: there is no {FILE_NAME} in it. Train one with `align train spm/...`.")
        model = cls(str(file.parent))
        model.load_state_dict(load_file(file), strict=False)
        return model.eval()


def _sinusoids(t: Tensor) -> Tensor:
    """t (B,) in [0, 1] -> (B, 2 FREQUENCIES), periods from 2 pi to 2 pi/1000 in geometric steps."""
    rates = torch.exp(torch.linspace(0, math.log(1000), FREQUENCIES, dtype=torch.float64, device=t.device))
    angles = t.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
