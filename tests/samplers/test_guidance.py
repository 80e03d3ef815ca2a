"""Guidance: what each way of saving and changing it equals, counts and leaves alone."""

import math
from types import SimpleNamespace

import pytest
import torch

from samplers import (
    DPMpp2M,
    FlowSchedule,
    GradPolicy,
    Guidance,
    Prediction,
    TensorCond,
    VPSchedule,
    cfg,
    ddim,
    full,
    grids,
    guide,
    sample,
)
from samplers.dynamic import choose
from samplers.prediction import split
from samplers.schedule import broadcast

ROWS = 4


class Network(torch.nn.Module):
    """A small network that depends on x, t and the condition; counts the rows it is asked for."""

    def __init__(self, schedule, kind, dtype=torch.float64):
        super().__init__()
        self.schedule, self.kind, self.rows = schedule, kind, []
        g = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter((0.4 * torch.randn(6, 6, generator=g, dtype=torch.float64)).to(dtype))

    def forward(self, x_t, t, cond):
        self.rows.append(len(x_t))
        time = broadcast(t, x_t) if t.ndim else t.to(x_t.dtype)
        return torch.tanh(x_t @ self.weight + cond.tensors["c"]) * (0.5 + time) + 0.3 * x_t


def cond(rows=ROWS, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return TensorCond({"c": torch.randn(rows, 6, generator=g, dtype=torch.float64).to(dtype)})


UNCOND = cond(1, seed=9)
X_T = torch.randn(ROWS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["vp", "flow"])
def setting(request, vp):
    """(network, grid of 8 steps)."""
    if request.param == "vp":
        return Network(vp, Prediction.EPSILON), grids.ddim(vp, 8, offset=1)
    return Network(FlowSchedule(), Prediction.FLOW), grids.flow(8, factor=2.0)


def run(network, grid, guidance, rows=slice(None), *, step=ddim, **options):
    network.rows.clear()
    denoiser = guide(network, UNCOND, guidance) if isinstance(guidance, Guidance) else guidance
    return sample(denoiser, X_T[rows], grid, cond()[rows], step=step, **options).x0


def plain(network, grid, scale=3.0, **options):
    return run(network, grid, cfg(network, UNCOND, scale, **options))


def test_a_gate_that_never_closes_is_plain_guidance_bit_for_bit(setting):
    network, grid = setting
    expected = plain(network, grid)
    for guidance in (
        Guidance(3.0, skip="adaptive", gamma=1.1),
        Guidance(3.0, skip="fraction", first=8),
        Guidance(3.0, skip="refresh", every=1, reuse="delta"),
        Guidance([3.0] * 8),
        Guidance({1.0: 3.0}),
    ):
        assert torch.equal(run(network, grid, guidance), expected), guidance
        assert network.rows == [2 * ROWS] * 8


def test_a_gate_that_closes_at_once_is_one_guided_step(setting):
    network, grid = setting
    found = run(network, grid, Guidance(3.0, skip="adaptive", gamma=-1.1))
    assert network.rows == [2 * ROWS] + [ROWS] * 7
    torch.testing.assert_close(found, run(network, grid, Guidance([3.0] + [1.0] * 7)), rtol=1e-12, atol=1e-13)


def test_where_the_prompt_says_nothing_guidance_is_over_after_the_first_call_and_changed_nothing(setting):
    network, grid = setting
    blank = TensorCond({"c": UNCOND.tensors["c"].expand(ROWS, 6)})
    guided = guide(network, UNCOND, Guidance(5.0, skip="adaptive"))
    network.rows.clear()
    found = sample(guided, X_T, grid, blank).x0
    assert network.rows == [2 * ROWS] + [ROWS] * 7
    torch.testing.assert_close(found, sample(network, X_T, grid, blank).x0, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("space", ["x0", "v"])
def test_each_row_decides_for_itself_and_counts_for_itself(setting, space):
    """A batch is each row alone; its calls are one a step and one more for each row that is still on."""
    network, grid = setting
    alone, asked = [], torch.zeros(8, dtype=torch.long)
    for gamma in (0.8, 0.9, 0.95, 0.99, 0.999):  # one at which the rows part company
        guidance = Guidance(3.0, skip="adaptive", gamma=gamma, space=space)
        alone = []
        asked = torch.zeros(8, dtype=torch.long)
        for k in range(ROWS):
            alone.append(run(network, grid, guidance, slice(k, k + 1)))
            asked += torch.tensor(network.rows) - 1
        if any(0 < n < ROWS for n in asked.tolist()):
            break
    assert any(0 < n < ROWS for n in asked.tolist()), "no gamma at which some rows are on and some off"
    together = run(network, grid, guidance)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-11, atol=1e-12)
    assert network.rows == (ROWS + asked).tolist()


def test_the_gate_is_the_cosine_of_the_two_predictions(setting):
    """Rows are off from the call after the first at which the cosine in x0 is gamma or more."""
    network, grid = setting
    guidance, seen = Guidance(3.0, skip="adaptive", gamma=0.9), {}

    class Watched(Network):
        def forward(self, x_t, t, c):
            out = super().forward(x_t, t, c)
            if len(x_t) == 2 * ROWS:  # all rows on: the calls before anybody left
                alpha, sigma = self.schedule(t)
                x0 = (x_t - sigma * out) / alpha if self.kind is Prediction.EPSILON else x_t - sigma * out
                a, b = x0.chunk(2)
                seen[float(t)] = torch.nn.functional.cosine_similarity(a, b)
            return out

    watched = Watched(network.schedule, network.kind)
    run(watched, grid, guidance)
    first = next(i for i, rows in enumerate(watched.rows) if rows < 2 * ROWS)
    for number, (_, cosine) in enumerate(sorted(seen.items(), reverse=True)):
        assert bool((cosine < 0.9).all()) == (number < first - 1)


def test_fraction_and_refresh_ask_when_they_say(setting):
    network, grid = setting
    run(network, grid, Guidance(3.0, skip="fraction", first=2))
    assert network.rows == [2 * ROWS] * 2 + [ROWS] * 6
    run(network, grid, Guidance(3.0, skip="refresh", every=3))
    assert network.rows == [2 * ROWS if i % 3 == 0 else ROWS for i in range(8)]


@pytest.mark.parametrize(("reuse", "power"), [("delta", 0), ("delta2", 1)])
def test_what_is_reused_is_the_difference_where_it_is_a_polynomial_of_the_call(reuse, power):
    """out_c - out_u that is constant, or grows in a line with the call: refreshed at every second call, only what had
    but one difference to go by (call 1 of a line) is not what full guidance takes."""
    grid = grids.flow(9)
    c, u = cond().tensors["c"], UNCOND.tensors["c"]

    class Line:
        kind, schedule = Prediction.FLOW, FlowSchedule()

        def __init__(self):
            self.rows = []

        def __call__(self, x_t, t, given):
            self.rows.append(len(x_t))
            place = int((grid.times - t).abs().argmin())
            return torch.sin(x_t) + given.tensors["c"] * (1 + place) ** power

    network, x = Line(), X_T
    for i in range(9):
        known = 0 if i == 1 else i
        slope = torch.sin(x) + c * (1 + i) ** power + 2.0 * (c - u) * (1 + known) ** power
        x = x + (grid.times[i + 1] - grid.times[i]) * slope
    found = run(network, grid, Guidance(3.0, skip="refresh", every=2, reuse=reuse))
    assert network.rows == [2 * ROWS, ROWS] * 4 + [2 * ROWS]
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-12)


def test_the_interval_has_its_bounds_inside_and_an_empty_one_costs_nothing(setting):
    network, grid = setting
    t = [float(v) for v in grid.times[:-1]]
    run(network, grid, Guidance(3.0, interval=(t[5], t[2])))
    assert network.rows == [2 * ROWS if 2 <= i <= 5 else ROWS for i in range(8)]
    found = run(network, grid, Guidance(3.0, interval=((t[0] + t[1]) / 2, (t[0] + t[1]) / 2)))
    assert network.rows == [ROWS] * 8
    assert torch.equal(found, sample(network, X_T, grid, cond()).x0)


def test_levels_by_time_hold_from_theirs_down_to_the_next(setting):
    network, grid = setting
    levels = Guidance({1.0: 5.0, float(grid.times[3]): 2.0})
    expected = run(network, grid, Guidance([5.0] * 3 + [2.0] * 5))
    torch.testing.assert_close(run(network, grid, levels), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_renoises_with_the_unconditional_noise(setting, lam):
    """Against its definition: x_s = alpha_s x0_hat(eps_lambda) + sigma_s eps_u, x0_hat itself at the end."""
    network, grid = setting
    x = X_T
    alpha, sigma = network.schedule(grid.times)
    for i in range(8):
        t = grid.times[i]
        out = network(torch.cat([x, x]), t, UNCOND.repeat(ROWS).cat(cond()))
        if network.kind is Prediction.FLOW:
            eps_u, eps_c = (x + alpha[i] * v for v in out.chunk(2))
        else:
            eps_u, eps_c = out.chunk(2)
        x0 = (x - sigma[i] * (eps_u + lam * (eps_c - eps_u))) / alpha[i] if alpha[i] > 0 else None
        if x0 is None:  # a flow's first time: x0 from the velocity
            u, c = out.chunk(2)
            x0 = x - (u + lam * (c - u))
        x = alpha[i + 1] * x0 + sigma[i + 1] * eps_u
    torch.testing.assert_close(run(network, grid, Guidance(lam, plus_plus=True)), x, rtol=1e-6, atol=1e-6)
    never = Guidance(lam, plus_plus=True, interval=(0.999999, 0.999999))
    assert torch.equal(run(network, grid, never), sample(network, X_T, grid, cond()).x0)


def test_zero_star_and_zero_init():
    network, grid = Network(FlowSchedule(), Prediction.FLOW), grids.flow(8)
    found = run(network, grid, Guidance(3.0, zero_init=2))
    assert network.rows == [2 * ROWS] * 6
    later = sample(cfg(network, UNCOND, 3.0), X_T, grids.Grid(grid.times[2:]), cond()).x0
    torch.testing.assert_close(found, later, rtol=1e-12, atol=1e-13)
    both = X_T[:1] * 2.0, X_T[:1]  # out_u parallel to out_c: out_c at every w

    class Parallel:
        kind, schedule = Prediction.FLOW, FlowSchedule()

        def __call__(self, x_t, t, c):
            return torch.cat(both)

    for w in (0.5, 3.0, 9.0):
        out = guide(Parallel(), UNCOND, Guidance(w, zero_star=True))(X_T[:1], torch.tensor(0.5).double(), cond(1))
        torch.testing.assert_close(out, both[1], rtol=1e-6, atol=1e-7)
    network.rows.clear()
    t = torch.tensor(0.5, dtype=torch.float64)
    u, c = network(torch.cat([X_T, X_T]), t, UNCOND.repeat(ROWS).cat(cond())).chunk(2)
    s = (u * c).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
    found = guide(network, UNCOND, Guidance(4.0, zero_star=True))(X_T, t, cond())
    torch.testing.assert_close(found, s * u + 4.0 * (c - s * u), rtol=1e-6, atol=1e-7)


def test_rescale_gives_back_the_standard_deviation(setting):
    network, grid = setting
    t = grid.times[2]
    conditional = network(X_T, t, cond())
    whole = guide(network, UNCOND, Guidance(7.0, rescale=1.0))(X_T, t, cond())
    torch.testing.assert_close(whole.std(1), conditional.std(1), rtol=1e-6, atol=1e-7)
    guided = cfg(network, UNCOND, 7.0)(X_T, t, cond())
    half = guide(network, UNCOND, Guidance(7.0, rescale=0.5))(X_T, t, cond())
    torch.testing.assert_close(half, 0.5 * whole + 0.5 * guided, rtol=1e-6, atol=1e-7)


def test_a_familys_rescale_is_told_the_guided_output_first_and_the_conditional_second(setting):
    network, grid = setting
    found = cfg(network, UNCOND, 7.0, rescale=lambda out, out_c: 2 * out + out_c)(X_T, grid.times[2], cond())
    guided, conditional = cfg(network, UNCOND, 7.0)(X_T, grid.times[2], cond()), network(X_T, grid.times[2], cond())
    torch.testing.assert_close(found, 2 * guided + conditional, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(3.0, skip="adaptive", gamma=0.9),
        Guidance(3.0, skip="refresh", every=2, reuse="delta"),
        Guidance(3.0, skip="refresh", every=2, reuse="delta2"),
        Guidance(3.0, skip="fraction", first=4, reuse="delta"),
        Guidance([1.0, 2.0, 3.0, 4.0] * 2),
    ],
)
def test_a_recomputed_call_repeats_what_was_decided(setting, guidance):
    """Gradients with and without checkpointing agree, and the same object twice gives the same images."""
    network, grid = setting

    def gradient(checkpoint):
        policy = GradPolicy(full().keep, checkpoint=checkpoint)
        end = run(network, grid, guidance, grad=policy)
        return end.detach(), torch.autograd.grad(end.square().sum(), network.weight)[0]

    (x0, stored), (again, recomputed) = gradient(False), gradient(True)
    assert torch.equal(x0, again)
    torch.testing.assert_close(stored, recomputed, rtol=1e-12, atol=1e-13)
    guided = guide(network, UNCOND, guidance)
    assert torch.equal(run(network, grid, guided), run(network, grid, guided))


def test_decisions_are_replayed_where_rounding_would_decide_otherwise():
    """A network whose recomputed output differs in its last bits, as in bf16, keeps the rows it had."""

    class Noisy(Network):
        def forward(self, x_t, t, c):
            out = super().forward(x_t, t, c)
            return out * (1 + 0.2 * len(self.rows) % 3)  # another value at each call, and another cosine

    network = Noisy(FlowSchedule(), Prediction.FLOW)
    grid = grids.flow(6)
    end = run(network, grid, Guidance(3.0, skip="adaptive", gamma=0.9), grad=GradPolicy(full().keep, checkpoint=True))
    forward = list(network.rows)
    network.rows.clear()
    end.sum().backward()
    assert network.rows == forward[::-1]


def test_what_a_trajectory_must_tell_is_refused_without_one(setting):
    network, _ = setting
    for guidance in (Guidance([2.0] * 8), Guidance(3.0, skip="adaptive"), Guidance(0.5, plus_plus=True)):
        with pytest.raises(ValueError, match="place in a trajectory"):
            guide(network, UNCOND, guidance)(X_T, torch.tensor(0.5).double(), cond())
    with pytest.raises(ValueError, match="3 scales of guidance for 8 network calls"):
        run(network, setting[1], Guidance([1.0, 2.0, 3.0]))


def test_it_goes_with_rules_that_remember(setting):
    network, grid = setting
    expected = run(network, grid, cfg(network, UNCOND, 3.0), step=DPMpp2M)
    found = run(network, grid, Guidance(3.0, skip="refresh", every=1), step=DPMpp2M)
    assert torch.equal(found, expected)


def test_a_network_that_skips_its_last_calls_carries_one_row_a_sample_in_the_window(vp):
    """DRaFT's window of the last steps then costs one call of the network, not two."""
    from samplers import last

    network, grid = Network(vp, Prediction.EPSILON), grids.ddim(vp, 8, offset=1)
    end = run(network, grid, Guidance(3.0, skip="fraction", first=4), grad=last(1))
    network.rows.clear()
    end.sum().backward()
    assert network.rows == [ROWS]
    assert math.isfinite(float(network.weight.grad.norm())) and isinstance(vp, VPSchedule)


def test_one_candidate_is_plain_guidance_bit_for_bit(setting):
    network, grid = setting
    dynamic = guide(network, UNCOND, Guidance(3.0, candidates=(3.0,)), judge=lambda x0: x0.flatten(1).mean(1)[None])
    assert torch.equal(run(network, grid, dynamic), plain(network, grid))
    assert network.rows == [2 * ROWS] * 8


def judged(setting, judge, candidates=(1.0, 2.0, 5.0), **options):
    """(images, the scales taken (calls, B), x0_c and x0_u of the first call)."""
    network, grid = setting
    begun = guide(network, UNCOND, Guidance(3.0, candidates=candidates, **options), judge=judge).begin(grid.times)
    guided = SimpleNamespace(schedule=network.schedule, kind=network.kind, begin=lambda times: begun)
    found = sample(guided, X_T, grid, cond()).x0
    assert network.rows[-8:] == [2 * ROWS] * 8
    level = network.schedule(grid.times[0])
    both = [network(X_T, grid.times[0], c) for c in (cond(), UNCOND.repeat(ROWS))]
    x0 = [split(out, X_T, *level, network.kind)[0] for out in both]
    return found, torch.stack([begun.chosen[i] for i in sorted(begun.chosen)]), x0


def test_a_linear_judge_takes_the_end_that_its_direction_says(setting):
    a = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found, scales, (x0_c, x0_u) = judged(setting, lambda x0: (x0 @ a)[None])
    assert torch.equal(scales[0], torch.where((x0_c - x0_u) @ a > 0, 5.0, 1.0).double())
    assert set(scales.flatten().tolist()) <= {1.0, 5.0} and len(set(scales[0].tolist())) == 2
    again, other, _ = judged(setting, lambda x0: (x0 @ a)[None], candidates=(5.0, 1.0, 2.0))
    assert torch.equal(scales, other) and torch.equal(found, again)


def test_a_quadratic_judge_takes_the_scale_nearest_to_its_best(setting):
    m = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    candidates = torch.tensor([0.0, 0.5, 1.5, 2.0, 4.0], dtype=torch.float64)
    told = tuple(candidates.tolist())
    _, scales, (x0_c, x0_u) = judged(setting, lambda x0: -(x0 - m).square().sum(1)[None], candidates=told)
    along = x0_c - x0_u
    best = ((m - x0_u) * along).sum(1) / along.square().sum(1)
    assert torch.equal(scales[0], candidates[(candidates[None] - best[:, None]).abs().argmin(1)])
    _, held, _ = judged(setting, lambda x0: -(x0 - m).square().sum(1)[None], candidates=told, judge_every=4)
    assert len(held) == 2


def test_an_evaluator_that_moved_outweighs_one_that_stood_still():
    likes_first = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])  # (E, S, B)
    before = torch.tensor([[0.1], [1.0]])  # the first rose from 0.1 to a mean of 0.5, the second stayed at 1
    assert choose(likes_first, before)[0].item() == 0
    assert choose(likes_first, torch.tensor([[0.5], [0.1]]))[0].item() == 1
    k, now = choose(likes_first, torch.tensor([[2.0], [2.0]]))  # none rose: alike, and the tie goes to the first
    assert k.item() == 0 and now.tolist() == [[1.0], [0.0]]


def test_choices_are_replayed_under_checkpointing(setting):
    network, grid = setting
    asked = []

    def judge(x0):
        asked.append(len(x0))
        return x0.flatten(1).mean(1)[None] * (-1) ** len(asked)  # would choose otherwise if it were asked again

    guided = guide(network, UNCOND, Guidance(3.0, candidates=(1.0, 5.0)), judge=judge)
    whole = GradPolicy(full().keep, checkpoint=True)
    x0 = sample(guided, X_T, grid, cond(), grad=whole).x0
    before = len(asked)
    x0.sum().backward()
    assert len(asked) == before == 16 and network.weight.grad is not None
    network.weight.grad = None
