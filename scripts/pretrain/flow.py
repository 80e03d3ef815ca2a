"""Stage flow: a rectified-flow transformer of Stable Diffusion 3's kind, on the same latents; no third text encoder.

    loss = |v - (noise - x)|^2, every noise level pulling alike, + naming + understanding
naming: a linear head on the tokens of the middle block names shape and colour under each of them in the clean picture,
as in stage sd; understanding: stage text's, on the states that the transformer is given, those before the last layer's.
Both heads are thrown away. The text tower starts from stage text's and is tuned along.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from align.models._shared_tokens import accept_last_count
from scripts.pretrain import clip, sd, text, vae
from scripts.pretrain.common import DEVICE, WORK, generator, parameters, record, train
from scripts.pretrain.pool import Pool, right

GUIDANCE, NOISY = 2.0, 0.65  # NOISY: shift of the times; below 1, cleaner ones more often: shapes are settled there
LAYERS, EXPECTED = 6, 0.3  # EXPECTED: loss of a level before any is measured
EMPTY = 256  # zero tokens that the stock pipeline puts in place of the third encoder's
SHRUNK = {"last_count": EMPTY}
DRAWN = {"num_inference_steps": 20, "guidance_scale": GUIDANCE}
FAST = {"max_sequence_length": 1, "joint_attention_kwargs": SHRUNK}  # of a call: one zero token stands for them all


def build(layers: int = LAYERS) -> SD3Transformer2DModel:
    """The untrained transformer."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=256,
        caption_projection_dim=128,
        pooled_projection_dim=256,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def text_encoder() -> CLIPTextModelWithProjection:
    """Stage text's tower, with a projection of its end token."""
    encoder = CLIPTextModelWithProjection(text.config())
    tower = text.load_encoder()
    encoder.text_model.load_state_dict(getattr(tower, "text_model", tower).state_dict())
    return encoder


def pipeline(transformer: SD3Transformer2DModel, encoder: CLIPTextModelWithProjection) -> StableDiffusion3Pipeline:
    """A stock pipeline; both of its CLIP text encoders are the embedded one."""
    autoencoder = vae.load().to(DEVICE)
    autoencoder.register_to_config(shift_factor=0.0)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=text.load(),
        text_encoder_2=encoder,
        tokenizer_2=text.load(),
        text_encoder_3=None,  # type: ignore[arg-type]
        tokenizer_3=None,  # type: ignore[arg-type]
    )
    return ready(pipe)


def ready(pipe: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    """Takes FAST, draws no bar."""
    accept_last_count(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(stage: str = "flow") -> StableDiffusion3Pipeline:
    """The trained pipeline, fp32."""
    folder = WORK / "out" / stage
    return ready(StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None))


def stochastic(pipe: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    """The same models, each step ending in fresh noise (diffusers' `stochastic_sampling`, the multistep rule of Song et
    al. 2023, arXiv 2303.01469, algorithm 1): what an earlier step got wrong is open again, where the probability-flow
    ODE carries it to the end."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)
    return ready(StableDiffusion3Pipeline(**(pipe.components | {"scheduler": scheduler})))


def times(batch: int, g: torch.Generator) -> Tensor:
    """(B,) stratified times in [0, 1], shifted by NOISY towards noise (Esser et al. 2024, arXiv 2403.03206)."""
    even = (torch.arange(batch) + torch.rand(batch, generator=g)) / batch
    return NOISY * even / (1 + (NOISY - 1) * even)


def encode(encoder: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor, SimpleNamespace]:
    """What the stock pipeline makes of token ids, the EMPTY zero tokens shrunk to one: states (B, LENGTH + 1, 256) and
    pooled (B, 256); and the states of one encoder as stage text's heads take them."""
    out = encoder(ids, output_hidden_states=True)
    states = out.hidden_states[-2]
    both = torch.cat([states, states], -1)
    end = (ids == text.load().eos_token_id).int().argmax(-1)
    told = SimpleNamespace(last_hidden_state=states, pooler_output=states[torch.arange(len(ids)), end])
    return torch.cat([both, torch.zeros_like(both[:, :1])], 1), torch.cat([out.text_embeds, out.text_embeds], -1), told


def kept(folder: str | Path) -> tuple[SD3Transformer2DModel, CLIPTextModelWithProjection]:
    """The transformer and the text tower of a folder that need hold no more."""
    transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    return transformer, CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder")


def attends_as(block: JointTransformerBlock, other: JointTransformerBlock) -> None:
    """`block` takes over the attention of `other` with gates of zero: it adds nothing at first but knows where to look.
    One that begins at random with such gates may look everywhere alike for good."""
    block.attn.load_state_dict(other.attn.state_dict())
    for name in ("norm1", "norm1_context"):
        taken, given = getattr(block, name).linear, getattr(other, name).linear
        with torch.no_grad():
            for to, source in ((taken.weight, given.weight), (taken.bias, given.bias)):
                shift, scale, gate, *_ = to.chunk(6)
                shift.copy_(source.chunk(6)[0]), scale.copy_(source.chunk(6)[1]), gate.zero_()


def deeper(transformer: SD3Transformer2DModel, layers: int = LAYERS) -> SD3Transformer2DModel:
    """The same function of `layers` layers: what a shallower one lacks stands before its last layer, attends as the one
    before, and with gates of zero (Peebles & Xie 2023, arXiv 2212.09748, section 3.2) adds nothing at first."""
    last = transformer.config["num_layers"] - 1
    if last + 1 >= layers:
        return transformer
    grown = build(layers)
    grown.load_state_dict(
        {k.replace(f"blocks.{last}.", f"blocks.{layers - 1}."): v for k, v in transformer.float().state_dict().items()},
        strict=False,
    )
    blocks = list(grown.transformer_blocks)
    for block in blocks[last:-1]:
        for gates in (block.norm1.linear, block.norm1_context.linear):
            torch.nn.init.zeros_(gates.weight), torch.nn.init.zeros_(gates.bias)
        attends_as(block, blocks[last - 1])
    return grown


def velocity(transformer: SD3Transformer2DModel, x_t: Tensor, t: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """(B, 4, 8, 8) at times t (B,) in [0, 1], of what `encode` gives."""
    return transformer(x_t, states, pooled, t * 1000, joint_attention_kwargs=SHRUNK, return_dict=False)[0]


def main(
    steps: int = 16_000, batch: int = 64, seed: int = 0, start: str | None = None, often: str | None = None
) -> None:
    """Train; `start`: folder whose transformer, made as deep as `build`'s, and text tower training starts from, at half
    the rate; `often`: a skill that a third more of the captions ask for."""
    torch.manual_seed(seed)
    transformer, encoder = kept(start) if start else (build(), text_encoder())
    transformer, levels = deeper(transformer).float().to(DEVICE).train(), sd.Levels(EXPECTED).to(DEVICE)
    encoder = encoder.float().to(DEVICE).train()
    head, heads = clip.build_head().to(DEVICE), text.Heads().to(DEVICE)
    accept_last_count(transformer)
    for block in transformer.transformer_blocks:
        block.compile()
    middle: list[Tensor] = []
    transformer.transformer_blocks[2].register_forward_hook(lambda *call: middle.__setitem__(slice(None), [call[2][1]]))
    pool = Pool(seed, show=partial(right, often=often))
    empty = text.tokens([""])[0].to(DEVICE)
    said, told, things = (every.to(DEVICE) for every in text.every_caption())

    def loss(step: int) -> Tensor:
        g = generator(seed, 37, step)
        x, words, labels = pool.batch(step, batch, g)
        words[(torch.rand(batch, generator=g) < sd.DROP).to(DEVICE)] = empty
        t, noise = times(batch, g).to(DEVICE), torch.randn(batch, 4, 8, 8, generator=g).to(DEVICE)
        x_t = torch.lerp(x, noise, t[:, None, None, None])
        states, pooled, _ = encode(encoder, words)
        out = velocity(transformer, x_t, t, states, pooled)
        naming = sd.named(head(middle.pop()), labels)
        rows = torch.randint(len(said), (batch,), generator=g).to(DEVICE)
        understanding = heads.loss(encode(encoder, said[rows])[2], (told[rows], things[rows]))
        pulled = levels((out - (noise - x)).pow(2).mean((1, 2, 3)), (t * 1000).clamp(max=999))
        return pulled + sd.NAMING * naming + sd.UNDERSTANDING * understanding

    def look(step: int) -> None:
        with torch.compiler.set_stance("force_eager"):
            pipe = pipeline(transformer.eval(), encoder.eval())
            pipe.save_pretrained(WORK / "out" / "flow")
            print(step, sd.judged(pipe, 192, **DRAWN, **FAST), flush=True)
        transformer.train(), encoder.train()

    rate = 7.5e-4 if start else 1.5e-3
    modules = {"flow": transformer, "text": encoder, "head": head, "heads": heads, "levels": levels}
    figures = train("flow", modules, loss, steps=steps, lr=rate, clip=sd.CLIP, look=(2000, look))
    pipe = pipeline(transformer, encoder)
    pipe.save_pretrained(WORK / "out" / "flow")
    figures |= {"parameters": parameters([transformer])}
    with torch.compiler.set_stance("force_eager"):
        record("flow", figures | {"judge": sd.judged(pipe, 768, **DRAWN, **FAST)})
