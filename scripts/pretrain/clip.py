"""Stage clip: a CLIP on renderings and on decoded, softened and noised ones.

Contrastive loss over the batch with each caption's one-attribute alterations as further negatives. While it trains,
linear heads on the patch tokens name the shape and colour under each patch; the heads are then thrown away.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionConfig

from align.shapes.captions import SKILLS, Requirement, alterations, say
from align.shapes.scene import COLOURS, SHAPES, Scene, coverage, render_batch
from scripts.pretrain import text, vae
from scripts.pretrain.common import DEVICE, WORK, draw, parameters, record, train

PATCH, NEGATIVES, POOL = 4, 4, 30_000
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SHAPE_IDS = {s: i + 1 for i, s in enumerate(SHAPES)}
COLOUR_IDS = {c: i + 1 for i, c in enumerate(COLOURS)}


def build() -> CLIPModel:
    """The network before training: its text tower is the warmed-up one."""
    vision = CLIPVisionConfig(
        image_size=32,
        patch_size=PATCH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=128,
    )
    settings = {"text_config": text.config().to_dict(), "vision_config": vision.to_dict()}
    network = CLIPModel(CLIPConfig(**settings, projection_dim=128, logit_scale_init_value=2.0))
    tower = text.load_encoder()
    network.text_model.load_state_dict(getattr(tower, "text_model", tower).state_dict())
    return network


def load() -> CLIPModel:
    """The trained network, fp32, frozen."""
    return CLIPModel.from_pretrained(WORK / "out" / "clip").requires_grad_(False).eval()


def normalise(images: Tensor) -> Tensor:
    """[0, 1] pixels -> the network's input."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def patch_labels(scenes: list[Scene]) -> Tensor:
    """(B, 64, 2) long: per patch the shape and the colour (0: none) of the object that covers a quarter of it most."""
    flat = [(i, o) for i, s in enumerate(scenes) for o in s.objects]
    place = torch.tensor([[o.x, o.y, o.radius] for _, o in flat])
    masks = coverage(*place.unbind(1))[range(len(flat)), [SHAPES.index(o.shape) for _, o in flat]]
    share = F.avg_pool2d(masks, PATCH).flatten(1)
    best = torch.full((len(scenes), share.shape[1]), 0.25)
    labels = torch.zeros(len(scenes), share.shape[1], 2, dtype=torch.long)
    for (i, o), row in zip(flat, share, strict=True):
        labels[i][row > best[i]] = torch.tensor([SHAPE_IDS[o.shape], COLOUR_IDS[o.colour]])
        best[i] = torch.maximum(best[i], row)
    return labels


def corrupt(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Slight damage of the kinds that samples show: softness, noise, blotches, a change of brightness."""
    b = len(images)

    def some(p: float, low: float, high: float) -> Tensor:
        amount = rng.uniform(low, high, (b, 1, 1, 1)) * (rng.random((b, 1, 1, 1)) < p)
        return torch.from_numpy(amount.astype(np.float32))

    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + some(0.3, 0.2, 0.9) * (soft - images)
    coarse = torch.from_numpy(rng.standard_normal((b, 3, 8, 8)).astype(np.float32))
    images = images + some(0.3, 0.01, 0.06) * F.interpolate(coarse, scale_factor=4, mode="bilinear")
    fine = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
    images = images + some(0.3, 0.01, 0.06) * fine + some(0.3, -0.06, 0.06)
    return images.clamp(0, 1)


def pool(seed: int) -> tuple[Tensor, Tensor, list[Requirement]]:
    """POOL pictures (a third decoded from their latents) as uint8, their patch labels, and what they show."""
    network, images, labels, wanted = vae.load().to(DEVICE), [], [], []
    for k in tqdm(range(POOL // 500), desc="clip pool", mininterval=5):
        requirement, scenes = draw(500, seed, 2, k)
        x = render_batch(scenes)
        if k % 3 == 0:
            with torch.no_grad():
                z = network.encode(x.to(DEVICE) * 2 - 1).latent_dist.mean
                x = (network.decode(z + 0.05 * z.std() * torch.randn_like(z)).sample / 2 + 0.5).clamp(0, 1).cpu()
        images.append((x * 255).round().byte())
        labels.append(patch_labels(scenes))
        wanted += requirement
    return torch.cat(images), torch.cat(labels), wanted


def negatives(requirement: Requirement, rng: np.random.Generator, count: int = NEGATIVES) -> list[str]:
    """Captions of `count` different alterations (fewer are repeated), in random order."""
    options = [say(r) for r in alterations(requirement)]
    order = rng.permutation(len(options))
    return [options[order[k % len(order)]] for k in range(count)]


def embed_text(network: CLIPModel, captions: list[str]) -> Tensor:
    """(B, 128) of length 1; equal captions are computed once."""
    unique = list(dict.fromkeys(captions))
    ids = text.tokens(unique).to(network.device)
    features = network.get_text_features(input_ids=ids).pooler_output
    where = {c: i for i, c in enumerate(unique)}
    return F.normalize(features, dim=-1)[[where[c] for c in captions]]


def build_head() -> nn.Linear:
    """Names the shape and the colour under a patch; thrown away after training."""
    return nn.Linear(128, 1 + len(SHAPES) + 1 + len(COLOURS))


def contrast(vision: Tensor, words: Tensor, captions: list[str], scale: Tensor) -> Tensor:
    """Both ways over the batch, and the own caption against its NEGATIVES alterations.

    vision: (B, D) of length 1; words: (B (1 + NEGATIVES), D), the B captions' first; scale: ().
    """
    batch = len(vision)
    logits = scale * vision @ words[:batch].T
    same = torch.tensor([[a == b for b in captions] for a in captions]) & ~torch.eye(batch, dtype=torch.bool)
    logits = logits.masked_fill(same.to(vision.device), -1e4)  # another picture of the same caption is no negative
    hard = scale * torch.einsum("bd,bkd->bk", vision, words[batch:].view(batch, NEGATIVES, -1))
    answer = torch.arange(batch, device=vision.device)
    pairwise = F.cross_entropy(torch.cat([logits.diagonal()[:, None], hard], 1), torch.zeros_like(answer))
    return F.cross_entropy(torch.cat([logits, hard], 1), answer) + F.cross_entropy(logits.T, answer) + pairwise


def dense(head: nn.Linear, patches: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the shape and colour of each patch. patches: (B, 64, 128); target: (B, 64, 2)."""
    target = target.to(patches.device)
    shape, colour = head(patches).split([1 + len(SHAPES), 1 + len(COLOURS)], -1)
    return F.cross_entropy(shape.flatten(0, 1), target[..., 0].flatten()) + F.cross_entropy(
        colour.flatten(0, 1), target[..., 1].flatten()
    )


def accuracy(network: CLIPModel, seed: int = 0, count: int = 3000) -> dict[str, float]:
    """How often the right caption beats a one-attribute alteration of it, per skill and overall, on renderings."""
    rng = np.random.default_rng([seed, 77])
    wanted, scenes = draw(count, seed, 1 << 42)
    with torch.no_grad():
        vision = network.get_image_features(pixel_values=normalise(render_batch(scenes))).pooler_output
        right = embed_text(network, [say(r) for r in wanted])
        wrong = embed_text(network, [negatives(r, rng, 1)[0] for r in wanted])
    won = ((vision * right).sum(-1) > (vision * wrong).sum(-1)).tolist()
    rows = {s: [w for w, r in zip(won, wanted, strict=True) if r.skill == s] for s in SKILLS}
    return {s: round(sum(v) / len(v), 4) for s, v in rows.items()} | {
        "mean over skills": round(sum(sum(v) / len(v) for v in rows.values()) / len(rows), 4)
    }


def main(steps: int = 2600, batch: int = 64, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network, head = build().to(DEVICE), build_head().to(DEVICE)
    images, labels, wanted = pool(seed)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 3, step])
        rows = rng.integers(len(wanted), size=batch)
        seen = network.vision_model(pixel_values=normalise(corrupt(images[rows].float() / 255, rng)).to(DEVICE))
        vision = F.normalize(network.visual_projection(seen.pooler_output), dim=-1)
        asked = [wanted[i] for i in rows]
        captions = [say(r) for r in asked]
        words = embed_text(network, captions + [c for r in asked for c in negatives(r, rng)])
        scale = network.logit_scale.exp().clamp(max=100)
        return contrast(vision, words, captions, scale) + dense(head, seen.last_hidden_state[:, 1:], labels[rows])

    figures = train("clip", {"clip": network, "head": head}, loss, steps=steps, lr=1e-3, warmup=200, weight_decay=0.05)
    folder = WORK / "out" / "clip"
    network.to("cpu").save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=size, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
    record("clip", figures | {"parameters": parameters([network]), "right over altered": accuracy(network, seed)})
