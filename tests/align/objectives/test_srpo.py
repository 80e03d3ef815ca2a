"""Direct-Align finds the image again where the model is right, in both branches and on every schedule, with the known
gradient; SRPO's reward is what a word adds, and swapping words swaps its sign."""

import pytest
import torch
from bundle_toys import BATCH, SEED, SHAPE, Bundle

from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._direct import recovered
from align.objectives.srpo import SRPO, SRPOConfig
from align.sampling import SamplingConfig
from align.shapes.embedded import resolve
from rewards import Composite, Reward, RewardConfig
from rewards.brightness import Brightness, BrightnessConfig
from rewards.clip import Clip, ClipConfig
from samplers import FlowSchedule, Prediction, Rng, VPSchedule, add_noise, split, target

VP = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
KINDS = [(FlowSchedule(), Prediction.FLOW), (VP, Prediction.EPSILON), (VP, Prediction.V), (VP, Prediction.SAMPLE)]
T = torch.tensor([0.75, 0.8, 0.96], dtype=torch.float64)
WORDS = [["bright", "dark"], ["vivid", "dull"]]


class Says:
    """A network that returns `out`, a leaf, whatever it is asked."""

    def __init__(self, schedule, kind, out):
        self.schedule, self.kind, self.out = schedule, kind, out

    def __call__(self, x_t, t, cond):
        return self.out


def latents():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator) for _ in range(2))


class Wordy(Reward):
    """The mean of the pixels, by a factor that the word decides."""

    Config = RewardConfig

    def forward(self, images, prompts):
        factor = torch.tensor([{"b": 2.0, "v": 1.5, "d": -0.5}[prompt[0]] for prompt in prompts]).to(images)
        return factor * images.flatten(1).mean(1)


class Network:
    """out = theta x + cond, on a flow."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self):
        self.theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        self.calls = 0

    def role(self, name):
        return self

    def __call__(self, x_t, t, cond):
        self.calls += torch.is_grad_enabled()
        return self.theta * x_t + cond.tensors["mean"]


def made(reward=None, **config):
    block = SamplingConfig(num_steps=4, step_rule="euler", guidance_scale=1.0, memory="stored")
    rewards = Composite({"r": reward or Wordy(RewardConfig(), name="wordy")})
    return SRPO(SRPOConfig(**{"words": WORDS} | config), Parts(Bundle(), block, rewards, SEED))


@pytest.mark.parametrize("h", [0.02, -0.02], ids=["takes noise away", "adds noise"])
@pytest.mark.parametrize(("schedule", "kind"), KINDS)
def test_where_the_model_is_right_the_image_is_found_again(schedule, kind, h):
    x0, eps = latents()
    right = target(x0, eps, *schedule(T), kind)
    found = recovered(Says(schedule, kind, right), x0, eps, T, T - h, None, recompute=False)
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("h", [0.02, -0.02])
def test_the_gradient_on_a_flow_is_h_over_1_minus_s_with_the_branchs_sign(h):
    x0, eps = latents()
    out = torch.zeros(3, *SHAPE, dtype=torch.float64, requires_grad=True)
    found = recovered(Says(FlowSchedule(), Prediction.FLOW, out), x0, eps, T, T - h, None, recompute=False)
    (gradient,) = torch.autograd.grad(found.sum(), out)
    expected = (-h / (1 - (T - h))).view(-1, 1, 1, 1).expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
def test_a_step_down_to_data_is_the_usual_prediction(schedule, kind):
    x0, eps = latents()
    out = torch.randn(3, *SHAPE, dtype=torch.float64)
    found = recovered(Says(schedule, kind, out), x0, eps, T, torch.zeros_like(T), None, recompute=False)
    x_t = add_noise(schedule, x0, eps, T)
    torch.testing.assert_close(found, split(out, x_t, *schedule(T), kind)[0], rtol=1e-9, atol=1e-9)


def test_on_a_table_it_is_the_papers_formula():
    """(x_t - d eps_hat - (sigma_t - d) eps*)/alpha_t, d = alpha_t (sigma_t/alpha_t - sigma_s/alpha_s)."""
    x0, eps = latents()
    out, s = torch.randn(3, *SHAPE, dtype=torch.float64), T - 0.03
    (alpha, sigma), (alpha_s, sigma_s) = ((c.view(-1, 1, 1, 1) for c in VP(time)) for time in (T, s))
    d = alpha * (sigma / alpha - sigma_s / alpha_s)
    expected = (add_noise(VP, x0, eps, T) - d * out - (sigma - d) * eps) / alpha
    found = recovered(Says(VP, Prediction.EPSILON, out), x0, eps, T, s, None, recompute=False)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("noise", "stream"), [("own", "x_T"), ("fresh", "known")])
def test_the_noise_is_the_images_own_or_another(monkeypatch, noise, stream):
    seen = []

    def kept(denoiser, x0, eps, *rest, **settings):
        seen.append(eps)
        return recovered(denoiser, x0, eps, *rest, **settings)

    monkeypatch.setattr("align.objectives.srpo.recovered", kept)
    made(noise=noise)(Network(), BATCH)
    assert torch.equal(seen[0], Rng(SEED, BATCH.indices, BATCH.step).normal(stream, seen[0]))


@pytest.mark.parametrize("inversion", [0.0, 1.0])
def test_swapping_the_words_negates_loss_and_gradient(inversion):
    found = []
    for words in (["bright", "dark"], ["dark", "bright"]):
        network = Network()
        loss = made(words=[words], inversion=inversion)(network, BATCH)
        found.append((loss.per_sample.detach(), *torch.autograd.grad(loss.per_sample.sum(), network.theta)))
    (loss, gradient), (swapped, other) = found
    assert loss.abs().min() > 0 and gradient.abs() > 0
    torch.testing.assert_close(swapped, -loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(other, -gradient, rtol=1e-9, atol=0)


def test_both_branches_move_the_output_the_same_way_and_take_one_call_with_gradient():
    signs = set()
    for inversion in (0.0, 1.0):
        network = Network()
        loss = made(words=[WORDS[0]], inversion=inversion)(network, BATCH)
        assert network.calls == 1 and loss.metrics["inverted"].tolist() == [inversion] * 3
        (gradient,) = torch.autograd.grad(loss.per_sample.sum(), network.theta)
        signs.add(float(gradient.sign()))
    assert len(signs) == 1


def test_rows_draw_by_themselves():
    objective = made()
    whole, part = objective.drawn(range(200)), objective.drawn([7, 8])
    assert torch.equal(whole.t[7:9], part.t) and whole.words[7:9] == part.words
    assert {*whole.words} == {("bright", "dark"), ("vivid", "dull")}
    assert float((whole.sign < 0).double().mean()) == pytest.approx(0.5, abs=0.12)
    torch.testing.assert_close(whole.s, whole.t - 0.02 * whole.sign)
    assert 0.75 <= whole.t.min() < 0.8 and 0.92 < whole.t.max() <= 0.96


@pytest.mark.parametrize("mix", [None, 0.0, 0.5, 1.0, 1.5])
def test_of_clip_it_is_the_feature_times_the_difference_of_the_texts(mix):
    clip = Clip(ClipConfig(model=str(resolve("embedded:shapes-clip")), form="cosine"))
    objective = made(clip, mix=mix)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    prompts, words = ["a red circle", "a star", "two squares"], [("large", "small")] * 3
    found, metrics = objective.relative(pixels, prompts, words)
    feature = clip.clip.images(pixels)
    texts = [clip.clip.prompts([f"{w}. {p}" for p in prompts], pixels.device) for w in ("large", "small")]
    text = texts[0] - texts[1] if mix is None else mix * texts[0] + (1 - mix) * texts[1]
    expected = (feature * text).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), pixels)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(metrics["relative/r"], (feature * (texts[0] - texts[1])).sum(-1), rtol=1e-3, atol=1e-5)


def test_the_known_noise_is_the_images_own_or_another_one():
    seen = []
    for noise in ("own", "fresh"):
        network = Network()
        loss = made(noise=noise)(network, BATCH)
        seen.append(loss.per_sample.detach())
    assert not torch.equal(*seen)


def test_a_reward_that_does_not_read_the_prompt_is_refused():
    objective = made(Brightness(BrightnessConfig()))
    objective(Network(), BATCH)
    with pytest.raises(UserError, match=r'with "bright" and with "dark".*reads the prompt'):
        objective.after_update(lambda rows: rows)
    reads = made()
    reads(Network(), BATCH)
    reads.after_update(lambda rows: rows)
    reads.after_update(lambda rows: rows)  # a process without rows, and no rows at all


@pytest.mark.parametrize("config", [{"times": (0.9, 0.8)}, {"times": (0.01, 0.5)}, {"times": (0.5, 0.99)}])
def test_times_that_a_step_leaves_are_refused(config):
    ((key, text),) = SRPOConfig(words=WORDS, **config).conflicts({})
    assert key == ".times" and "0.02" in text
    assert not list(SRPOConfig(words=WORDS, times=(0.5, 0.99), inversion=0.0).conflicts({}))


@pytest.mark.parametrize("words", [[], [["bright"]], [["bright", ""]]])
def test_words_come_in_pairs(words):
    with pytest.raises(ValueError, match="words"):
        SRPOConfig(words=words)
