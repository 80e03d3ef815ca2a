"""LPIPS against the package lpips, DINO against transformers, on random weights; and their reference images."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_toys import PICTURES, PROMPTS, SIZES, noise, smooth, to_tensor
from tiny_checkpoints import lpips_files

from rewards import RewardError
from rewards._load import read_state
from rewards.dino import Dino, DinoConfig
from rewards.lpips import NETWORKS, Lpips, LpipsConfig


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.png"
    smooth(52, 40).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    return path


def resized(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """PIL's resize, horizontally first."""
    image = Image.open(path)
    image = image.resize((size[1], image.height), Image.Resampling.BICUBIC)
    return to_tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_that_of_its_package(network, reference, tmp_path):
    lpips = pytest.importorskip("lpips")
    backbone, heads = lpips_files(tmp_path, network)
    reward = Lpips(LpipsConfig(reference=str(reference), network=network, backbone=str(backbone), heads=str(heads)))
    theirs = lpips.LPIPS(net=network, pnet_rand=True, pretrained=False, verbose=False)
    state = torch.load(backbone, weights_only=True)
    for name, module in theirs.net.named_modules():  # slices keep torchvision's numbers
        if isinstance(module, torch.nn.Conv2d):
            number = name.split(".")[1]
            module.load_state_dict({part: state[f"features.{number}.{part}"] for part in ("weight", "bias")})
    missing, unexpected = theirs.load_state_dict(torch.load(heads, weights_only=True), strict=False)
    assert not unexpected and not any("lin" in key and ".model.1." in key for key in missing if "lins" not in key)
    for size in SIZES if network == "alex" else [(64, 64), (48, 60)]:
        images = to_tensor(*(picture(*size) for picture in PICTURES))
        with torch.no_grad():
            wanted = theirs(images, resized(reference, size).expand_as(images), normalize=True).flatten()
        assert wanted.std() > 1e-3 * wanted.mean()
        torch.testing.assert_close(reward(images, PROMPTS), -wanted, rtol=1e-5, atol=1e-6)


def test_the_published_heads_are_those_of_the_package():
    lpips = pytest.importorskip("lpips")
    for network, (taps, _, digest) in NETWORKS.items():
        file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert [v.shape[1] for v in read_state(file).values()] == {"alex": [64, 192, 384, 256, 256]}.get(
            network, [64, 128, 256, 512, 512]
        )
        assert len(taps) == 5


def test_lpips_of_the_reference_is_zero_with_a_finite_gradient(reference, tiny_lpips):
    backbone, heads = map(str, tiny_lpips)
    reward = Lpips(LpipsConfig(reference=str(reference), backbone=backbone, heads=heads))
    images = torch.cat([to_tensor(Image.open(reference)), torch.zeros(1, 3, 52, 40)]).requires_grad_()
    scores = reward(images, PROMPTS[:2])
    assert abs(scores[0].item()) < 1e-9 and scores[1].item() < -0.1
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert gradient.isfinite().all()


def test_the_gradient_of_lpips_is_that_of_finite_differences(reference, tiny_lpips, finite_differences):
    backbone, heads = map(str, tiny_lpips)
    reward = Lpips(LpipsConfig(reference=str(reference), backbone=backbone, heads=heads)).double()
    finite_differences(reward, [""], noise(40, 40), step=1e-7)


@torch.no_grad()
def embedding(folder: Path, pictures) -> torch.Tensor:
    from transformers import BitImageProcessorPil, Dinov2Model

    pixel_values = BitImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    state = Dinov2Model.from_pretrained(folder, dtype=torch.float32)(pixel_values).last_hidden_state[:, 0]
    return state / state.norm(dim=-1, keepdim=True)


def test_dino_is_the_cosine_of_transformers(reference, tiny_dino):
    reward = Dino(DinoConfig(reference=str(reference), model=str(tiny_dino)))
    target = embedding(tiny_dino, [Image.open(reference)])
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        wanted = (embedding(tiny_dino, pictures) * target).sum(-1)
        assert wanted.std() > 0.01
        torch.testing.assert_close(reward(to_tensor(*pictures), PROMPTS), wanted, rtol=0, atol=1e-5)
    itself = reward(to_tensor(Image.open(reference)), PROMPTS[:1])
    torch.testing.assert_close(itself, torch.ones(1), rtol=0, atol=1e-5)


def test_the_gradient_of_dino_is_that_of_finite_differences(reference, tiny_dino, finite_differences):
    reward = Dino(DinoConfig(reference=str(reference), model=str(tiny_dino))).double()
    reward.dtype = torch.float64
    finite_differences(reward, [""], smooth(40, 40))


def test_a_reference_for_each_prompt(reference, tiny_dino, tmp_path):
    noise(40, 40).save(tmp_path / "noise.png")
    both = {PROMPTS[0]: str(reference), PROMPTS[1]: str(tmp_path / "noise.png")}
    reward = Dino(DinoConfig(reference=both, model=str(tiny_dino)))
    images = to_tensor(noise(40, 40)).expand(2, -1, -1, -1)
    scores = reward(images, PROMPTS[:2])
    assert scores[1] > 0.999 > scores[0]
    with pytest.raises(RewardError, match="no reference for the prompt 'a green star"):
        reward(images, PROMPTS[1:])
    (said,) = reward.config.unreadable(PROMPTS)
    assert "no reference for the prompt 'a green star" in said
    assert list(LpipsConfig(reference=both).unreadable(PROMPTS)) == [said.replace("dino", "lpips")]
    assert not list(LpipsConfig(reference=str(reference)).unreadable(PROMPTS))


def test_a_reference_is_upright_as_every_picture_is(tiny_dino, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = noise(40, 40)
    picture.save(tmp_path / "phone.png", exif=turned)
    reward = Dino(DinoConfig(reference=str(tmp_path / "phone.png"), model=str(tiny_dino)))
    upright, lying = (to_tensor(p) for p in (picture.transpose(Image.Transpose.ROTATE_270), picture))
    assert reward(upright, [""]) > 0.999 > reward(lying, [""])


def test_references_that_are_none_are_one_line(tiny_dino, tmp_path):
    with pytest.raises(RewardError, match=r"reward dino: reference=.*nowhere\.png: there is no such file"):
        Dino(DinoConfig(reference=str(tmp_path / "nowhere.png"), model=str(tiny_dino)))
    (tmp_path / "torn.png").write_text("no image")
    reward = Dino(DinoConfig(reference=str(tmp_path / "torn.png"), model=str(tiny_dino)))
    with pytest.raises(RewardError, match=r"torn\.png: is no image that can be read"):
        reward(torch.zeros(1, 3, 32, 32), [""])
