"""LPIPS to a reference image: the distance of deep features, as people judge likeness patch by patch.

    r = -sum_l mean_hw w_l . (f_l(x)/|f_l(x)| - f_l(y)/|f_l(y)|)^2

f_l are the activations of an ImageNet network after its convolutional stages, w_l >= 0 weights fitted to human
judgements (Zhang et al. 2018, arXiv:1801.03924, version 0.1). The reference is resized to the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._load import given_file, load_strictly, read_state, url_file
from rewards._reference import References, missing

# network: (indices of the torchvision features that are read, torchvision's file, sha256 of the weights w_l)
NETWORKS = {
    "alex": (
        (1, 4, 7, 9, 11),
        "alexnet-owt-7be5be79.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg": (
        (3, 8, 15, 22, 29),
        "vgg16-397923af.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}
LEAST = {"alex": 31, "vgg": 16}  # pixels a side that leave something to the last stage
HEADS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
TORCHVISION_URL = "https://download.pytorch.org/models"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10


class LpipsConfig(RewardConfig):
    name: Literal["lpips"] = "lpips"
    reference: str | dict[str, str]
    """An image file, or {prompt: image file}."""
    network: Literal["alex", "vgg"] = "alex"
    """`alex` judges best, `vgg` has the smoother gradient."""
    backbone: str | None = None
    """A file of torchvision's AlexNet or VGG-16; default: downloaded."""
    heads: str | None = None
    """A file of LPIPS's own weights, version 0.1; default: downloaded."""

    card = Card(
        measures="How alike an image and a reference image look, place by place.",
        range="below 0; 0 is the reference",
        size="2.5 M (AlexNet) or 15 M (VGG-16)",
        hacking="A copy of the reference, whatever the prompt asks.",
        partner="clip",
        licences={"LPIPS": "BSD-2-Clause", "torchvision": "BSD-3-Clause"},
    )

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return missing("lpips", self.reference, prompts)


class Lpips(Reward):
    """Minus the LPIPS distance to the reference; higher is more alike. Prompts only choose the reference."""

    Config = LpipsConfig

    def __init__(self, config: LpipsConfig):
        super().__init__(config)
        self.references = References("lpips", config.reference)
        self.taps, backbone, digest = NETWORKS[config.network]
        self.least = LEAST[config.network]
        if config.backbone is not None:
            file = given_file("lpips", "backbone", config.backbone)
        else:
            check = backbone.rpartition("-")[2].removesuffix(".pth")
            file = url_file("lpips", "backbone", f"{TORCHVISION_URL}/{backbone}", backbone, check)
        features = _features(config.network)
        state = {key: value for key, value in read_state(file).items() if not key.startswith("classifier.")}
        load_strictly(nn.ModuleDict({"features": features}), state, file)
        self.features: Any = features[: self.taps[-1] + 1]
        if config.heads is not None:
            file = given_file("lpips", "heads", config.heads)
        else:
            name = f"{config.network}.pth"
            file = url_file("lpips", "heads", f"{HEADS_URL}/{name}", f"lpips-0.1-{name}", digest)
        widths = [features[tap - 1].out_channels for tap in self.taps]  # type: ignore[union-attr]
        heads = nn.Module()
        for level, width in enumerate(widths):
            heads.register_buffer(f"lin{level}", torch.zeros(1, width, 1, 1))  # type: ignore[arg-type]
        load_strictly(heads, {k.removesuffix(".model.1.weight"): v for k, v in read_state(file).items()}, file)
        self.heads = heads

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if min(images.shape[2:]) < self.least:
            raise RewardError(
                f"reward lpips: an image of {images.shape[3]} x {images.shape[2]} pixels is too small for its network. "
                f"Give images of at least {self.least} pixels a side."
            )
        with torch.no_grad():
            targets = self._levels(
                self.references.stack(prompts, (images.shape[2], images.shape[3]), images.device).to(images)
            )
        total = self.heads.get_buffer("lin0").new_zeros(len(images))
        for level, (ours, theirs) in enumerate(zip(self._levels(images), targets, strict=True)):
            weight = self.heads.get_buffer(f"lin{level}")
            total = total + ((ours - theirs).square() * weight).sum(1).mean((1, 2))
        return -total

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Activations of every stage, of unit length along the channels."""
        images = images.to(self.heads.get_buffer("lin0").dtype)
        shift, scale = (images.new_tensor(x).view(1, 3, 1, 1) for x in (SHIFT, SCALE))
        x = (2 * images - 1 - shift) / scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON))
        return found


def _features(network: str) -> Any:
    """The convolutional part of torchvision's network, its activations not in place: they are read."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        from rewards._clip import torchvision_mismatch

        raise torchvision_mismatch("torchvision", error) from error
    with torch.device("meta"):
        features: Any = (models.alexnet if network == "alex" else models.vgg16)(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features.to_empty(device="cpu")
