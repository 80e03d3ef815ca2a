"""HPSv2 against open_clip and torchvision's tensor resize on tiny weights."""

import pytest
import torch
from reward_toys import PROMPTS, noise, smooth, stripes, to_tensor

from rewards import RewardError
from rewards.hpsv2 import HPSv2, HPSv2Config, Padded

SIZES = [(512, 512), (1024, 1024), (768, 512), (300, 401), (224, 227), (500, 1000), (224, 224), (200, 100)]


def reference(images: torch.Tensor, size: int) -> torch.Tensor:
    """The benchmark's steps on a tensor in [0, 1], before normalisation."""
    from torchvision.transforms.functional import InterpolationMode, pad, resize

    height, width = images.shape[2:]
    scale = size / max(height, width)
    new = [round(height * scale), round(width * scale)]
    if scale != 1:
        images = resize(images, new, InterpolationMode.BICUBIC, antialias=True)
    down, right = size - new[0], size - new[1]
    return pad(images, [right // 2, down // 2, right - right // 2, down - down // 2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", [noise, smooth, stripes])
def test_preprocessing_is_the_benchmarks_exactly(size, picture):
    images = to_tensor(picture(*size))
    ours = Padded(224, mean=(0.0,) * 3, std=(1.0,) * 3)(images)
    assert torch.equal(ours, reference(images, 224))


def test_black_is_padded_before_normalisation():
    ours = Padded(8, mean=(0.5,) * 3, std=(0.25,) * 3)(torch.ones(1, 3, 4, 8))
    assert ours[0, 0, :, 0].tolist() == [-2, -2, 2, 2, 2, 2, -2, -2]


def test_the_score_is_open_clips_cosine(tiny_open_clip):
    import open_clip

    name, file = tiny_open_clip.split("/", 1)
    model = open_clip.create_model(name, pretrained=file)
    reward = HPSv2(HPSv2Config(model=name, weights=file))
    mean, std = (torch.tensor(getattr(reward.clip.preprocess, part)).view(1, 3, 1, 1) for part in ("mean", "std"))
    for size in SIZES:
        images = to_tensor(*(picture(*size) for picture in (noise, smooth, stripes)))
        with torch.no_grad():
            image = model.encode_image((reference(images, 32) - mean) / std, normalize=True)
            text = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
        torch.testing.assert_close(reward(images, PROMPTS), (image * text).sum(-1), rtol=0, atol=1e-5)


def test_alignprops_preprocessing(tiny_open_clip):
    from torchvision.transforms.functional import InterpolationMode, normalize, resize

    name, file = tiny_open_clip.split("/", 1)
    reward = HPSv2(HPSv2Config(model=name, weights=file, preprocess="alignprop"))
    images = to_tensor(noise(64, 64), stripes(64, 64))
    resized = resize(images, [32], InterpolationMode.BILINEAR, antialias=True)
    ours = reward.clip.preprocess
    wanted = normalize(resized, list(ours.mean), list(ours.std))
    torch.testing.assert_close(ours(images), wanted, rtol=0, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences(tiny_open_clip, finite_differences, monkeypatch):
    from rewards import hpsv2

    monkeypatch.setattr(hpsv2, "quantise", lambda images: images)  # rounding has no derivative
    name, file = tiny_open_clip.split("/", 1)
    reward = HPSv2(HPSv2Config(model=name, weights=file)).double()
    reward.clip.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 48))


def test_the_two_versions_are_two_files(monkeypatch):
    asked = []
    monkeypatch.setattr("rewards.hpsv2.hub_file", lambda *args: asked.append(args) or 1 / 0)
    for version in ("2.0", "2.1"):
        with pytest.raises(ZeroDivisionError):
            HPSv2(HPSv2Config(version=version))
    assert [(repo, file) for _, _, repo, file in asked] == [
        ("xswu/HPSv2", "HPS_v2_compressed.pt"),
        ("xswu/HPSv2", "HPS_v2.1_compressed.pt"),
    ]


def test_weights_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(RewardError, match="there is no such file"):
        HPSv2(HPSv2Config(weights=str(tmp_path / "nowhere.pt")))
    with pytest.raises(RewardError, match="neither cached nor to be had") as caught:
        HPSv2(HPSv2Config())
    assert "\n" not in str(caught.value)
