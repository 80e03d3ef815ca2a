"""The text of a prompt, optimised at inference: aesthetic gradients, towards a folder of pictures or by a reward.

    towards    e = unit(mean_k f_img(y_k)),    L = -cos(P(TE_a(c)), e)
    reward     L = -r(decode(x0_hat(x_T, TE_a(c))), c),   the prediction of the first network call

T steps of Adam on a fresh adapter a of the text encoder TE, for each prompt by itself; P and f_img are the CLIP whose
text tower TE is (Gallego, arXiv 2209.12330, there on all of TE's weights). Images are then drawn with TE_a's states,
and the unconditional row is the untouched encoder's. T = 0 is the encoder as it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from align.errors import UserError
from align.models._base import device_of
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from rewards._clip import HFClip, load_clip
from rewards._images import ImageError, hidden, read_pil, tensor
from samplers import TensorCond

TOWER = "openai/clip-vit-large-patch14"  # whose text tower Stable Diffusion 1 reads
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]
RANK = 8
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
Loss = Callable[[str, int, TensorCond], Tensor]
"""(prompt, number of its first image, its encoding with the graph) -> (), lower is better."""


def encoders(model: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, text model) of each CLIP text encoder of a family's; raises UserError where it has none."""
    text = getattr(model, "text", None)
    found = getattr(text, "encoders", None) or [(getattr(text, "tokenizer", None), getattr(text, "text_model", None))]
    clips = [(t, m) for t, m in found if type(m).__name__ in ("CLIPTextModel", "CLIPTextModelWithProjection")]
    if not clips:
        name = getattr(getattr(model, "settings", None), "name", "this model")
        kinds = ", ".join(sorted({type(m).__name__ for _, m in found}))
        raise UserError(
            f"--text-steps: {name} reads its text by {kinds}, which has no image tower that it was trained with. Use a "
            "model with a CLIP text encoder."
        )
    return clips


class Towards:
    """The loss towards a folder's pictures, and the encoder that it is about."""

    def __init__(self, model: Any, folder: Path, tower: str = TOWER):
        clip = load_clip(tower)
        if not isinstance(clip, HFClip):
            raise UserError(f"--tower {tower}: is read by open_clip, and text towers are compared in HF's format here.")
        self.clip = clip.to(device_of(model.network))
        own = {_plain(name): value for name, value in clip.network.text_model.state_dict().items()}
        for self.tokenizer, self.encoder in encoders(model):
            if _same(own, self.encoder):
                break
        else:
            raise UserError(
                f"--towards: no text encoder of this model is the text tower of {tower}, so that its image tower says "
                "nothing of what they write. Give the CLIP that the encoder was taken from: --tower."
            )
        with torch.no_grad():
            self.goal = normalize(torch.cat([self.clip.images(x) for x in _pictures(folder, model)]).mean(0), dim=0)

    def __call__(self, prompt: str, _: int, cond: TensorCond) -> Tensor:
        tokens = self.tokenizer([prompt], self.goal.device)
        state = self.encoder(tokens.ids)
        pooled = getattr(state, "pooler_output", None)
        said = state[0].float() if pooled is None else self.clip.network.text_projection(pooled.float())
        return -(normalize(said[0], dim=0) @ self.goal)


class TextSteps:
    """T steps for each prompt; `moved` {prompt: |h - h_base|/|h_base| of the encoding} says how far they led."""

    def __init__(self, model: Any, loss: Loss, *, num_steps: int, lr: float = 1e-4):
        self.model, self.loss, self.num_steps, self.lr = model, loss, num_steps, lr
        self.moved: dict[str, float] = {}
        self._rows: dict[str, TensorCond] = {}
        network = getattr(loss, "encoder", None)
        self.network = encoders(model)[0][1] if network is None else network
        self.adapter: Adapter | None = None

    def encode(self, prompts: Sequence[str], first: int = 0) -> TensorCond:
        """One row a prompt, image number `first` being that of the first; a prompt is optimised once."""
        if self.num_steps == 0:
            return self.model.text.encode(prompts)
        for number, prompt in enumerate(prompts, first):
            if prompt not in self._rows:
                self._rows[prompt] = self._optimised(prompt, number)
        rows = [self._rows[prompt] for prompt in prompts]
        return TensorCond({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})

    def _optimised(self, prompt: str, number: int) -> TensorCond:
        base = self.model.text.encode([prompt])
        if self.adapter is None:
            device = device_of(self.network)
            self.adapter = Adapter(AdapterConfig(rank=RANK), self.network, PROJECTIONS, component="text_encoder")
            self.network.to(device)
            self.fresh = {name: value.clone() for name, value in self.adapter.state_dict().items()}
        optimiser = torch.optim.Adam(self.adapter.parameters(), lr=self.lr)
        try:
            for _ in range(self.num_steps):
                with torch.enable_grad():
                    loss = self.loss(prompt, number, self.model.text.encode([prompt], grad=True))
                    gradients = torch.autograd.grad(loss, self.adapter.parameters(), allow_unused=True)
                for parameter, gradient in zip(self.adapter.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
            with torch.no_grad():
                found = self.model.text.encode([prompt], grad=True)
        finally:
            self.adapter.load_state_dict(self.fresh)  # the identity again: what comes next knows nothing of this
        moved, there = (found.tensors["text"] - base.tensors["text"]).float(), base.tensors["text"].float()
        self.moved[prompt] = float(moved.norm() / there.norm())
        return found


def _plain(name: str) -> str:
    return name.removeprefix("text_model.")


def _same(tower: dict[str, Tensor], encoder: Any) -> bool:
    """Whether the encoder's weights are the tower's, to the precision that they are kept in."""
    own = {_plain(name): value for name, value in encoder.state_dict().items() if "text_projection" not in name}
    if {name: v.shape for name, v in own.items()} != {name: v.shape for name, v in tower.items()}:
        return False
    return all(torch.allclose(tower[name].to(value), value, rtol=1e-2, atol=1e-6) for name, value in own.items())


def _pictures(folder: Path, model: Any) -> list[Tensor]:
    """(1, 3, H, W) of each picture of a folder."""
    device = device_of(model.network)
    every = sorted(folder.expanduser().rglob("*"))
    files = [file for file in every if file.suffix.lower() in ENDINGS and not hidden(file)]
    try:
        found = [tensor(read_pil(file))[None].to(device) for file in files]
    except ImageError as error:
        raise UserError(f"--towards {folder}: {error} Repair it or take it away.") from None
    if not found:
        raise UserError(f"--towards {folder}: there is no picture in it. Give a folder of pictures.")
    return found
