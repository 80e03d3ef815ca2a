"""Mask2Former as a detector: transformers' network and processor on the same weights; GenEval's rule on drawings."""

from types import SimpleNamespace

import pytest
import torch
from reward_toys import noise, randomise, to_tensor
from torch import nn
from torch.nn.functional import interpolate

from rewards import RewardError
from rewards._coco import NAMES
from rewards._demands import COLOURS
from rewards._instances import NEVER, Instances
from rewards.detector import Detector, DetectorConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Mask2Former on a tiny Swin, images of 40 to 64 pixels in multiples of 32, COCO's names as COCO has them."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers import Mask2FormerImageProcessorPil as Processor

    folder = tmp_path_factory.mktemp("mask2former")
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    plain = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=24,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=24, num_queries=9,
        id2label={k: plain.get(name, name) for k, name in enumerate(NAMES)},
    )  # fmt: skip
    randomise(Mask2FormerForUniversalSegmentation(config), seed=5).save_pretrained(folder)
    Processor(size={"shortest_edge": 40, "longest_edge": 64}, size_divisor=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(40, 56), (96, 64), (20, 30)])
def test_what_is_seen_is_what_transformers_sees(tiny, size):
    """The network behind its own processor by PIL; then mmdet's reading of it, written out query by query."""
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    image, own = noise(*size), Instances(str(tiny))
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(tiny).eval()
    pixels = AutoImageProcessor.from_pretrained(tiny, backend="pil")(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(own.preprocess(to_tensor(image)), pixels, rtol=0, atol=1e-4)
        out = theirs(pixels)
    classes, masks = out.class_queries_logits[0].softmax(-1)[:, :-1], out.masks_queries_logits
    for target in (pixels.shape[2:], size):
        masks = interpolate(masks, tuple(target), mode="bilinear", align_corners=False)
    best = sorted((float(classes[q, k]), q, k) for q in range(9) for k in range(80))[-9:]
    names = [NAMES[best[-1][2]], next(name for name in NAMES if name not in {NAMES[k] for _, _, k in best})]
    with torch.no_grad():
        seen = own(to_tensor(image), names)
    for row, name in enumerate(names):
        for q in range(9):
            there = masks[0, q] > 0
            score = float(masks[0, q].sigmoid()[there].sum() / (there.sum() + 1e-6))
            looked = any((q, NAMES.index(name)) == pair[1:] for pair in best) and score > 0
            found = float(seen.logits[0, row, q].sigmoid())
            wanted = float(classes[q, NAMES.index(name)]) * score if looked else float(torch.tensor(NEVER).sigmoid())
            assert found == pytest.approx(wanted, abs=1e-4)
            if bool(there.any()):
                ys, xs = there.nonzero().T
                box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
                assert seen.boxes[0, row, q].tolist() == box
    assert bool((seen.logits > NEVER).any()), "where nothing is seen, nothing is compared"


def network_of(objects, side=64):
    """[(name, probability, (H, W) mask)] -> a stand-in for the network."""

    def network(pixel_values):
        classes = torch.full((len(objects) + 1, 81), -20.0)
        masks = torch.full((len(objects) + 1, side // 4, side // 4), -30.0)
        classes[-1, 80] = 20.0
        for q, (name, p, mask) in enumerate(objects):
            classes[q, NAMES.index(name)] = torch.logit(torch.tensor(p))
            classes[q, 80] = 0.0
            masks[q] = interpolate(mask[None, None].float(), (side // 4,) * 2, mode="area")[0, 0] * 60 - 30
        batch = len(pixel_values)
        return SimpleNamespace(
            class_queries_logits=classes.expand(batch, -1, -1), masks_queries_logits=masks.expand(batch, -1, -1, -1)
        )

    network.dtype = torch.float32  # type: ignore[attr-defined]
    return network


def looking(objects) -> Instances:
    made = Instances.__new__(Instances)
    nn.Module.__init__(made)
    made.network, made.preprocess = network_of(objects), lambda images: images
    return made


RGB = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.2, 0.9), "green": (0.1, 0.7, 0.2), "white": (1.0, 1.0, 1.0)}


def drawing(*things):
    """(colour, x0, y0, x1, y1, shape) on a green ground -> image (1, 3, 64, 64) and a mask each; a "ring" is hollow, so
    that what lies in its box is mostly the ground."""
    image, masks = torch.tensor(RGB["green"]).view(3, 1, 1).repeat(1, 64, 64), []
    for colour, x0, y0, x1, y1, shape in things:
        mask = torch.zeros(64, 64, dtype=torch.bool)
        mask[y0:y1, x0:x1] = True
        if shape == "ring":
            mask[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4] = False
        image[:, mask] = torch.tensor(RGB[colour])[:, None]
        masks.append(mask)
    return image[None], masks


def nearest(image, boxes, name, masks):
    """The colour of what is not grey in a cut-out, as GenEval's CLIP is shown it."""
    found = torch.zeros(len(boxes), 10)
    for k, (box, mask) in enumerate(zip(boxes.round().int().tolist(), masks, strict=True)):
        x0, y0, x1, y1 = box
        shown = torch.where(mask, image, 0x99 / 255)[:, y0:y1, x0:x1].flatten(1)
        own = shown[:, (shown - 0x99 / 255).abs().amax(0) > 1e-3].mean(1)
        name = min(RGB, key=lambda colour: float((own - torch.tensor(RGB[colour])).abs().sum()))
        found[k, COLOURS.index(name)] = 1.0
    return found


TWO = (("red", 4, 24, 20, 40, "ring"), ("blue", 40, 24, 60, 44, "full"))
GOLDEN = [
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a cup and a dog", 1),
    ([("cup", 0.25), ("dog", 0.95)], "a photo of a cup and a dog", 0),  # below 0.3
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a dog right of a cup", 1),
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a dog left of a cup", 0),
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a dog below a cup", 0),
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a red cup and a blue dog", 1),  # the ring's ground is green
    ([("cup", 0.95), ("dog", 0.95)], "a photo of a green cup and a blue dog", 0),
    ([("dog", 0.95), ("dog", 0.95)], "a photo of two dogs", 1),
    ([("dog", 0.95), ("dog", 0.8)], "a photo of two dogs", 0),  # counted from 0.9 on
    ([("dog", 0.95), ("dog", 0.8)], "a photo of a dog", 0),  # one too many
]


@pytest.mark.parametrize(("named", "prompt", "right"), GOLDEN)
def test_genevals_verdict_on_drawings(named, prompt, right):
    image, masks = drawing(*TWO)
    seen = looking([(name, p, mask) for (name, p), mask in zip(named, masks, strict=True)])
    one = Detector(DetectorConfig(form="verdict", colours=None), network=seen, colours=nearest)
    assert (one.threshold, one.counting) == (0.3, 0.9)
    assert float(one(image, [prompt])[0]) == right


def test_thresholds_that_are_set_hold():
    seen = looking([])
    one = Detector(DetectorConfig(threshold=0.5, colours=None), network=seen)
    assert (one.threshold, one.counting) == (0.5, 0.5)
    assert Detector(DetectorConfig(counting=0.6, colours=None), network=seen).counting == 0.6


def test_what_it_cannot_see_is_said(tiny, tmp_path):
    with pytest.raises(RewardError, match="'lighthouse', which is none of COCO's 80"):
        Detector(DetectorConfig(model=str(tiny), colours=None))(torch.zeros(1, 3, 40, 40), ["a lighthouse"])
    for model in (str(tiny), "facebook/mask2former-swin-small-coco-instance"):
        (said,) = DetectorConfig(model=model, colours=None).unreadable(["a lighthouse", "a dog"])
        assert "'lighthouse', which is none of COCO's 80" in said
    assert not list(DetectorConfig(colours=None).unreadable(["a lighthouse"]))


def test_soft_checks_have_a_gradient(tiny):
    one = Detector(DetectorConfig(model=str(tiny), colours=None, form="log"))
    pixels = (0.8 * to_tensor(noise(40, 40)) + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(one(pixels, ["a dog and a cup"]).sum(), pixels, materialize_grads=True)
    assert gradient.isfinite().all()
