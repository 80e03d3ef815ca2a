"""PickScore against transformers: the reference's few lines, written out."""

import torch
from reward_toys import PICTURES, PROMPTS, SIZES, smooth, to_tensor

from rewards.pickscore import PickScore, PickScoreConfig


@torch.no_grad()
def reference(folder, pictures):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    pixel_values = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    image = model.get_image_features(pixel_values=pixel_values).pooler_output
    text = model.get_text_features(**words).pooler_output
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    return model.logit_scale.exp() * (text @ image.T).diagonal(), pixel_values


def test_scores_are_those_of_transformers(tiny_clip):
    reward = PickScore(PickScoreConfig(model=str(tiny_clip)))
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        wanted, pixel_values = reference(tiny_clip, pictures)
        scale = float(wanted.abs().max())
        assert wanted.std() > 0.02 * scale
        images = to_tensor(*pictures)
        torch.testing.assert_close(reward(images, PROMPTS), wanted, rtol=0, atol=1e-4 * scale)
        reward.clip.preprocess, kept = (lambda _, ready=pixel_values: ready), reward.clip.preprocess
        torch.testing.assert_close(reward(images, PROMPTS), wanted, rtol=0, atol=1e-5 * scale)
        reward.clip.preprocess = kept


def test_the_forms(tiny_clip):
    images = to_tensor(*(picture(48, 60) for picture in PICTURES))
    logit, cosine, unit = (
        PickScore(PickScoreConfig(model=str(tiny_clip), form=form))(images, PROMPTS)
        for form in ("logit", "cosine", "unit")
    )
    scale = PickScore(PickScoreConfig(model=str(tiny_clip))).clip.logit_scale
    assert scale > 10
    torch.testing.assert_close(logit, scale * cosine)
    torch.testing.assert_close(logit / 26, unit)


def test_tokenizer_and_preprocessing_may_come_from_elsewhere(tiny_clip, tmp_path):
    """The published weights come without a usable processor; LAION's is theirs."""
    from transformers import CLIPModel

    CLIPModel.from_pretrained(tiny_clip).save_pretrained(tmp_path)
    images = to_tensor(smooth(48, 60))
    ours = PickScore(PickScoreConfig(model=str(tmp_path), processor=str(tiny_clip)))(images, PROMPTS[:1])
    torch.testing.assert_close(ours, PickScore(PickScoreConfig(model=str(tiny_clip)))(images, PROMPTS[:1]))


def test_the_gradient_is_that_of_finite_differences(tiny_clip, finite_differences):
    reward = PickScore(PickScoreConfig(model=str(tiny_clip))).double()
    reward.clip.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 40))
