"""The guard's decisions on scripted measurements: progress, patience, alarms, what survives a stop, the sweep; and its
probes against closed forms."""

import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.hooks._base import State, Surroundings
from align.hooks._measured import Measurement
from align.hooks._probes import chroma, detail, spread
from align.hooks._sweep import gain as gain_of
from align.hooks._sweep import recommended
from align.hooks.guard import Guard, GuardConfig
from rewards.brightness import BrightnessConfig

FLAT = torch.full((4, 3, 8, 8), 0.5)


def textured(seed: int = 0) -> torch.Tensor:
    """Two images of each of two prompts."""
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Script:
    """A painter whose measurements are written down: (scores of the four images by label, images)."""

    def __init__(self, *measurements):
        self.measurements = list(measurements)
        self.asked = 0

    def score(self, role, prompts, rewards, *, stream, num_images, poll):
        if stream == "guard":
            assert (role, num_images) == ("result", 4) and prompts == ["a", "a", "b", "b"]
        self.asked += 1
        means, images = self.measurements.pop(0)
        spread_out = torch.tensor([-1.0, 1.0]).repeat(num_images // 2)  # standard deviation 1
        images = images.repeat(num_images // len(images), 1, 1, 1)
        return {label: mean + spread_out for label, mean in means.items()}, images


class Weights:
    def __init__(self):
        self.value, self.strength, self.used = torch.zeros(2), 1.0, []

    def state_dict(self):
        return {"w": self.value}

    @contextmanager
    def scaled(self, strength):
        self.used.append(strength)
        yield


def guard(script: Script, **settings) -> Guard:
    given = {"prompts": ["a", "b"], "rewards": {"clip": BrightnessConfig()}, "every": 1, "drift": None}
    given |= {"num_prompts": 2, **settings}
    around = Surroundings(Path(), None, Weights(), script, dict, {}, seed=0)
    return Guard(GuardConfig(**given), around)


def scores(*means: float, images: torch.Tensor | None = None) -> Script:
    return Script(*[({"clip": mean}, textured() if images is None else images) for mean in means])


def play(hook: Guard, updates: int, *, start: int = 0) -> State:
    """The hook's part of a run until it stops it."""
    state = State(num_updates=100, step=start)
    hook.start(state)
    while state.step < start + updates and not state.stop:
        state.step += 1
        state.metrics = {}
        hook.around.trainable.value = torch.full((2,), float(state.step))
        hook.after_update(state)
    return state


def test_it_stops_after_patience_measurements_that_fell_behind_and_keeps_the_last_before():
    hook = guard(scores(5.0, 5.5, 6.0, 5.9, 5.0, 5.99, 9.0), patience=3)
    state = play(hook, 6)
    assert state.step == 5 and "3 measurements in a row fell behind since update 2" in (state.stop or "")
    assert state.chosen is not None and state.chosen.step == 2
    assert state.chosen.tensors["w"].tolist() == [2, 2], "a copy of that update's parameters"
    assert hook.events == [{"update": 5, "event": state.stop}]


def test_one_that_holds_starts_the_count_anew_and_without_patience_nothing_stops():
    assert play(guard(scores(0, 1, 0, 0, 2, 0, 0, 3), patience=3), 7).stop is None
    state = play(guard(scores(*range(8, 0, -1)), patience=None), 7)
    assert state.stop is None and state.chosen is not None and state.chosen.step == 0


def told(*pairs: tuple[float, float]) -> Script:
    """Measurements by the means of the two prompts."""
    return Script(*[({"clip": torch.tensor([a, a, b, b])}, textured()) for a, b in pairs])


def test_what_is_within_a_standard_error_of_the_best_holds():
    """Differences of (0, -1) have mean -0.5 and standard error 0.5; of (-0.2, -1) mean -0.6 and error 0.4."""
    hook = guard(told((0, 0), (4, 4), (4, 3), (3.8, 3)), patience=None)
    state = play(hook, 3)
    assert state.chosen is not None and state.chosen.step == 2 and hook.waited == 1
    assert hook.best is not None and hook.best.score == 4


def test_slow_decline_cannot_pass_step_by_step():
    """Each differs little from the one before, but all are compared with the best."""
    hook = guard(told((0, 0), (4, 4), (4, 3), (3.5, 2), (3, 1.2), (2.5, 0)), patience=3)
    state = play(hook, 9)
    assert state.step == 5 and state.chosen is not None and state.chosen.step == 2


def seen(*each, alarms=()):
    return Measurement(sum(each) / len(each), {}, {}, list(each), list(alarms))


def test_another_strength_is_recommended_only_where_it_is_surely_better():
    """At 4 prompts and one other strength, Student's quantile is t(0.95, 3) = 2.353: of d = (1, 1, 1, 2) the margin is
    2.353 x 0.25 = 0.588 below the mean of 1.25; of (0, 1, 1, 2) it is 0.961 below 1."""
    one = seen(0, 0, 0, 0)
    assert recommended({1.0: one, 0.75: seen(1, 1, 1, 2)}) == 0.75
    assert recommended({1.0: one, 1.25: seen(0, 1, 1, 2)}) == 1.25
    assert recommended({1.0: one, 0.5: seen(0, 1, 1, 2), 1.25: one}) == 1.0, "two tries ask for more of each"
    assert recommended({1.0: seen(0, 0), 0.5: seen(9, 9)}) == 1.0, "no interval of two prompts"
    assert recommended({1.0: one, 0.5: seen(9, 9, 9, 9, alarms=["astray"])}) == 1.0
    astray = seen(0, 0, 0, 0, alarms=["astray"])
    assert recommended({0.25: seen(5, 5, 5, 5), 0.5: one, 1.0: astray, 1.75: one}) == 0.5, "the nearest sound one"
    more, base = {1.0: one, 1.25: seen(0, 1, 1, 2)}, seen(0, 0, 1, 2)
    assert recommended(more, base) == 1.0, "there is nothing to have more of"
    assert recommended(more, seen(-9, -9, -9, -9)) == 1.25 and recommended({1.0: one, 0.75: more[1.25]}, base) == 0.75
    assert recommended({1.0: one}) == recommended({}) == recommended({0.5: one}) == 1.0


def test_the_gain_over_the_base_says_whether_it_is_sure():
    """t(0.975, 3) = 3.182: (1, 1, 1, 2) is 1.25 +- 0.796, (0, 0, 1, 2) is 0.75 +- 1.523."""
    base = seen(0, 0, 0, 0)
    found = gain_of(seen(1, 1, 1, 2), base)
    assert found == pytest.approx({"mean": 1.25, "low": 1.25 - 0.7956, "high": 1.25 + 0.7956, "better": True}, abs=1e-3)
    unsure = gain_of(seen(0, 0, 1, 2), base)
    assert unsure is not None and not unsure["better"] and unsure["low"] < 0
    assert gain_of(seen(1, 1), seen(0, 0)) is None


def test_the_score_is_the_mean_gain_in_the_bases_standard_deviations():
    flat = {"a": torch.tensor([0.0, 4.0, 0.0, 4.0]), "b": torch.tensor([1.0, 1.5, 1.0, 1.5])}  # std 2 and 0.25
    hook = guard(Script(), rewards={"a": BrightnessConfig(), "b": BrightnessConfig()})
    for step, gain in ((0, 0.0), (1, 1.0)):
        terms = {label: values + gain for label, values in flat.items()}
        hook.around.painter.score = lambda *_, terms=terms, **__: (terms, textured())
        state = State(num_updates=9, step=step)
        hook.start(state) if step == 0 else hook.after_update(state)
        assert state.metrics["guard/score"] == pytest.approx(gain * (1 / 2 + 1 / 0.25) / 2)
    assert state.metrics["guard/a"] == 3.0 and state.metrics["guard/b"] == 2.25


def test_measurements_are_made_before_the_first_update_every_so_often_and_after_the_last():
    hook = guard(scores(*range(9)), every=4)
    state = State(num_updates=6)
    hook.start(state)
    for state.step in range(1, 7):
        hook.after_update(state)
    assert hook.around.painter.asked == 3  # 0, 4, 6


ALIKE = textured().view(2, 2, 3, 8, 8).mean(1, keepdim=True).expand(-1, 2, -1, -1, -1).flatten(0, 1)
CHECKED = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(4, 3, 8, 8)
SMOOTH = torch.nn.functional.interpolate(torch.rand(4, 3, 2, 2), size=(8, 8), mode="bilinear")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (textured(), ALIKE, "the images of a prompt differ by 0 %"),
        (textured(), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(4, 3, 8, 8), "chroma is 1"),
        (SMOOTH, (SMOOTH + CHECKED) / 2, "detail is"),
        (textured(), textured().mean(1, keepdim=True).expand(-1, 3, -1, -1), "chroma is 0"),  # a fall is a shift too
    ],
)
def test_images_that_go_astray_are_no_progress_however_high_the_score(before, after, message):
    hook = guard(Script(({"clip": 0.0}, before), ({"clip": 9.0}, after), ({"clip": 1.0}, before)))
    state = play(hook, 2)
    assert state.chosen is not None and state.chosen.step == 2
    assert [event["update"] for event in hook.events] == [1] * len(hook.events)
    assert any(message in event["event"] for event in hook.events), hook.events


def test_each_probe_is_a_field():
    off = {"max_shift": None, "min_diversity": None}
    hook = guard(Script(({"clip": 0.0}, textured()), ({"clip": 9.0}, CHECKED)), **off)
    state = play(hook, 1)
    assert state.chosen is not None and state.chosen.step == 1 and hook.events == []
    assert state.metrics.keys() == {"guard/score", "guard/clip"}


def test_drift_is_measured_and_may_raise_an_alarm():
    hook = guard(scores(0.0, 1.0, 2.0), max_drift=0.5)
    hook.drift = SimpleNamespace(measure=lambda state: 0.3 * state.step)  # type: ignore[assignment]
    state = play(hook, 2)
    assert state.metrics["drift"] == 0.6 and state.chosen is not None and state.chosen.step == 1
    assert "the drift is 0.6, above 0.5" in hook.events[0]["event"]


def test_a_resumed_guard_decides_as_an_unbroken_one():
    script = (5.0, 5.5, 6.0, 5.9, 5.0, 5.99)
    whole = guard(scores(*script), patience=3)
    play(whole, 6)
    first = guard(scores(*script[:4]), patience=3)
    play(first, 3)
    second = guard(scores(*script[4:]), patience=3)
    second.load_state_dict(first.state_dict())
    state = play(second, 6, start=3)
    assert state.step == 5 and state.chosen is not None and state.chosen.tensors["w"].tolist() == [2, 2]
    held = (hook.state_dict() for hook in (whole, second))
    timeless = [{k: v for k, v in state.items() if k not in ("seconds", "tensors")} for state in held]
    assert timeless[0] == timeless[1]
    third = guard(Script(), patience=3)
    third.load_state_dict(second.state_dict())
    third.start(again := State(num_updates=100, step=5))
    assert again.stop == state.stop and again.chosen is not None and again.chosen.step == 2, "it stays ended"


def test_the_sweep_is_judged_on_prompts_that_chose_nothing():
    """6 more prompts, against the base on them; a strength is measured anew, 1 too."""
    hook = guard(scores(0.0, 1.0), prompts=list("abcdefgh"), num_sweep_prompts=9, sweep=(0.5, 1.25, 1.5))
    state = play(hook, 1)
    assert hook.apart == [prompt for prompt in "cdefgh" for _ in range(2)]
    asked, told = [], {"base": 0.0, 0.5: 0.8, 1.0: 1.0, 1.25: 1.2, 1.5: 7.0}

    class Painter(Script):
        def score(self, role, prompts, rewards, *, stream, num_images, poll):
            assert prompts == hook.apart and stream == "guard/sweep"
            asked.append("base" if role == "reference" else weights.used[-1])
            self.measurements = [({"clip": told[asked[-1]]}, ALIKE if asked[-1] == 1.5 else textured())]
            return super().score(role, prompts, rewards, stream=stream, num_images=num_images, poll=poll)

    hook.around = Surroundings(Path(), None, weights := Weights(), Painter(), dict, {}, seed=0)
    found = hook.conclude(state, lambda: None)
    assert asked == ["base", 0.5, 1.0, 1.25, 1.5] and found["sweep_prompts"] == 6
    assert [round(entry["score"], 6) for entry in found["sweep"]] == [0.8, 1.0, 1.2, 7.0]
    assert found["recommended_strength"] == 1.25 and found["best_update"] == 1
    assert found["gain"]["better"] and found["gain"]["mean"] == pytest.approx(1.2)
    assert found["sweep"][3]["alarms"] and not found["sweep"][2]["alarms"]


def test_without_prompts_apart_strength_1_is_recommended():
    hook = guard(scores(0.0, 1.0), prompts=["a", "b", "A ", "c"], sweep=(0.5, 1.25))
    state = play(hook, 1)
    assert hook.apart == [], "a prompt that chose is none that is apart"
    script = Script(({"clip": 0.8}, textured()), ({"clip": 9.0}, textured()))
    hook.around = Surroundings(Path(), None, weights := Weights(), script, dict, {}, seed=0)
    found = hook.conclude(state, lambda: None)
    assert weights.used == [0.5, 1.25] and [entry["strength"] for entry in found["sweep"]] == [0.5, 1.0, 1.25]
    assert found["recommended_strength"] == 1.0 and found["sweep_prompts"] == 0 and "gain" not in found


@pytest.mark.slow
def test_where_training_changes_nothing_the_guard_says_so():
    """400 runs of adapters that are as good as the base at every strength: another strength than 1 in at most 5 %, a
    gain that is called sure in at most 5 %."""
    other = better = 0
    prompts = [str(i) for i in range(32)]
    for run in range(400):
        draw = torch.Generator().manual_seed(run)

        class Null:
            def score(self, role, prompts, rewards, *, stream, num_images, poll, draw=draw):
                level = torch.arange(num_images // 2).repeat_interleave(2).sin()  # prompts differ, adapters do not
                noise = torch.randn(num_images, generator=draw)
                return {"clip": level + 0.5 * noise}, FLAT[:1].expand(num_images, -1, -1, -1)

        hook = guard(Null(), prompts=prompts, num_prompts=16, patience=None, max_shift=None, min_diversity=None)
        found = hook.conclude(play(hook, 8), lambda: None)
        other += found.get("recommended_strength", 1.0) != 1.0
        better += bool((found.get("gain") or {}).get("better"))
    assert other <= 0.05 * 400 and better <= 0.05 * 400, (other, better)


def test_with_a_first_adapter_the_base_is_the_model_without_it():
    asked = []

    class Painter:
        def score(self, role, prompts, rewards, *, stream, num_images, poll):
            asked.append(role)
            return {"clip": torch.tensor([-1.0, 1, -1, 1]) + (role == "result")}, textured()

    hook = guard(Painter())
    hook.around = Surroundings(Path(), None, Weights(), Painter(), dict, {"adapter": {"init": "a"}}, seed=0)
    state = play(hook, 0)
    assert asked == ["reference", "result"] and state.metrics["guard/score"] == 1.0


def test_where_nothing_improved_there_is_nothing_to_sweep():
    hook = guard(scores(1.0, 0.5))
    found = hook.conclude(play(hook, 1), lambda: None)
    assert (found["sweep"], found["best_update"]) == ([], 0) and "recommended_strength" not in found


def test_without_strengths_to_try_none_is_recommended():
    hook = guard(scores(0.0, 1.0), sweep=())
    found = hook.conclude(play(hook, 1), lambda: None)
    assert found["best_update"] == 1 and found["sweep"] == [] and "recommended_strength" not in found


def test_a_reward_that_is_trained_on_may_not_be_its_own_guard():
    config = GuardConfig(prompts=["a"], rewards={"mine": BrightnessConfig()})
    ((key, text),) = config.conflicts({"rewards": {"brightness": BrightnessConfig()}})
    assert key == ".rewards.mine" and "trained on" in text
    ((key, _),) = GuardConfig(prompts=["a"], rewards={}).conflicts({})
    assert key == ".rewards"


def test_chroma_is_the_channels_range():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(chroma(torch.cat([red, 0.5 * red, FLAT[:1, :, :4, :4]])), torch.tensor([1, 0.5, 0]))


def test_detail_is_the_share_of_energy_above_half_the_nyquist_frequency():
    x = torch.arange(16.0)
    low, high = torch.cos(2 * math.pi * x / 8), torch.cos(2 * math.pi * x * 3 / 8)  # 1/8 and 3/8 cycles a pixel
    images = torch.stack([low, high, 2 * low + high, torch.zeros(16)])[:, None, None].expand(4, 3, 16, 16)
    torch.testing.assert_close(detail(0.5 + 0.1 * images), torch.tensor([0.0, 1.0, 0.2, 0.0]), atol=1e-5, rtol=0)
    turned = detail(0.5 + 0.1 * images.transpose(2, 3))
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.2, 0.0]), atol=1e-5, rtol=0)


def test_spread_is_the_mean_distance_of_a_prompts_images():
    levels = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.6]])  # distances 0; 0.3, 0.3, 0.6
    images = levels[:, :, None, None, None].expand(2, 3, 3, 32, 32)
    torch.testing.assert_close(spread(images), torch.tensor([0.0, 0.4]))
    other_order = images.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 3))  # a decoder's output
    torch.testing.assert_close(spread(other_order), torch.tensor([0.0, 0.4]))
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert float(spread(noisy)[0]) < 0.2, "pixel noise is averaged away before"


def test_every_recipe_that_differentiates_a_reward_is_guarded():
    from align import recipes
    from align.config import load_recipe

    loaded = {name: load_recipe(path, on_disk=False) for name, path in recipes.names().items()}
    guarded = {
        name: any(isinstance(hook, GuardConfig) for hook in recipe.hooks.values())
        for name, recipe in loaded.items()
        if (
            getattr(recipe.objective, "needs_gradient", False)
            or (recipe.objective.name == "diff_instruct" and recipe.rewards)
        )
        and getattr(recipe.objective, "trains", "") != "noise"
        and recipe.objective.name != "soft_prompt"  # a guard's prompts have no such word
    }
    assert len(guarded) >= 10 and [name for name, has_one in guarded.items() if not has_one] == []


def test_an_empty_sweep_is_not_announced():
    assert "strengths" in guard(Script()).last and guard(Script(), sweep=()).last == ""
