"""Images of a role for given prompts at given seeds, and their scores, with the work spread over the processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.policy.roles import Policy
from align.processes import gather_object
from align.sampling import SamplingConfig, rollout
from samplers import Rng, generator


class Painter:
    """Samples without gradient. An image depends on (seed, stream, its index, its prompt) and on nothing beside it.

    `batch_size` images are drawn at once; None: as many as four megapixels hold, 1 to 64 (64 to 256 x 256, 4 at 1024).
    """

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        accelerator: Accelerator,
        *,
        seed: int,
        batch_size: int | None = None,
    ):
        self.policy = policy
        self.sampling = sampling
        self.accelerator = accelerator
        self.seed = seed
        height, width = sampling.image_size or policy.model.image_size
        self.batch_size = batch_size or max(1, min(64, 2**22 // (height * width)))

    @torch.no_grad()
    def images(self, role: str, prompts: Sequence[str], indices: Sequence[int], stream: str) -> Tensor:
        """(B, 3, H, W) in [0, 1], rounded to the 256 levels of a saved image: what is judged is what is seen."""
        model = self.policy.model
        # The stream enters the seed: sample 0 of a panel must not start from the noise that sample 0 trained on.
        seed = generator(self.seed, stream, 0).initial_seed()
        drawn = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            with self.policy.uncounted():
                found = rollout(self.sampling, model, self.policy.role(role), prompts[rows], Rng(seed, indices[rows]))
            drawn.append((model.codec.decode(found.x0).float() * 255).round() / 255)
        return torch.cat(drawn)

    def score(
        self,
        role: str,
        prompts: Sequence[str],
        rewards: Any,
        *,
        stream: str,
        num_images: int = 0,
        poll: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """({label: (n,) scores of all n prompts}, the first `num_images` images), the same on every process, CPU.

        `poll` is called by all processes together after each batch, and may raise.
        """
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        length = min(self.batch_size, -(-len(prompts) // size))
        starts = range(0, len(prompts), length)
        terms: dict[int, dict[str, Tensor]] = {}
        kept: dict[int, Tensor] = {}
        for turn in range(0, len(starts), size):
            for start in starts[turn + rank : turn + rank + 1]:
                rows = range(start, min(start + length, len(prompts)))
                chosen = [prompts[i] for i in rows]
                images = self.images(role, chosen, rows, stream)
                with torch.no_grad():
                    terms[start] = {label: scores.cpu() for label, scores in rewards(images, chosen).items()}
                kept[start] = images[: max(0, num_images - start)].cpu()
            poll()
        if size > 1:
            terms = {start: value for part in gather_object([terms]) for start, value in part.items()}
            kept = {start: value for part in gather_object([kept]) for start, value in part.items()}
        labels = terms[0]
        scores = {label: torch.cat([terms[start][label] for start in starts]) for label in labels}
        return scores, torch.cat([kept[start] for start in starts])
