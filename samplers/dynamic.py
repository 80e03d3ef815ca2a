"""Dynamic guidance: which of several scales a step takes, as evaluators of the predicted images say.

    k = argmax_w  sum_e a_e z_e(w),    z: scores over the candidates, standardised
    a_e = relu((m_e - e_before)/|e_before|), normalised over e;  m: mean over candidates, e_before: of the last choice

An evaluator whose score has moved is informative now. Papalampidi et al., arXiv 2509.16131, eq. 6-7; the relu, the
normalisation and the standardising are ours, since eq. 7 may be negative and evaluators have units of their own.
"""

import torch
from torch import Tensor


def choose(scores: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """scores (E, S, B) of E evaluators on S candidates for B rows, higher is better; before (E, B): of the candidates
    chosen last, None at the first. -> (numbers of the candidates chosen (B,), their scores (E, B))."""
    scores = scores.double()
    mean = scores.mean(1)
    moved = torch.ones_like(mean) if before is None else torch.relu((mean - before) / before.abs().clamp(min=1e-6))
    total = moved.sum(0)
    share = torch.where(total > 0, moved / total.clamp(min=1e-12), torch.full_like(moved, 1 / len(moved)))
    spread = scores.std(1, correction=0, keepdim=True)
    standard = torch.where(spread > 0, (scores - mean[:, None]) / spread.clamp(min=1e-12), torch.zeros_like(scores))
    k = (share[:, None] * standard).sum(0).argmax(0)
    return k, scores.gather(1, k[None, None].expand(len(scores), 1, -1)).squeeze(1)
