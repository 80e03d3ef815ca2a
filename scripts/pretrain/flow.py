"""Stage flow: a rectified-flow transformer of Stable Diffusion 3's kind, on the same latents; no third text encoder.

It trains in two rounds: times of a logit-normal first, then more of the noisy ones, where a caption is obeyed or not.
While it trains, a linear head on the tokens of the middle block names shape and colour under each of them in the clean
picture; it is thrown away (representation alignment, Yu et al., arXiv 2410.06940, with known labels for features).
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from align.models._shared_tokens import accept_last_count
from scripts.pretrain import clip, sd, text, vae
from scripts.pretrain.common import WORK, draw, generator, parameters, record, recorded, train

GUIDANCE, NOISY = 2.0, 2.0
EMPTY = 256  # zero tokens that the stock pipeline puts in place of the third encoder's


def build() -> SD3Transformer2DModel:
    """The untrained transformer."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=256,
        caption_projection_dim=128,
        pooled_projection_dim=256,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def text_encoder() -> CLIPTextModelWithProjection:
    """The text tower and projection of the trained CLIP."""
    source = clip.load()
    encoder = CLIPTextModelWithProjection(source.config.text_config)
    encoder.text_model.load_state_dict(source.text_model.state_dict())
    encoder.text_projection.load_state_dict(source.text_projection.state_dict())
    return encoder.requires_grad_(False).eval()


def pipeline(transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """A stock pipeline; both of its CLIP text encoders are the embedded one."""
    autoencoder = vae.load()
    autoencoder.register_to_config(shift_factor=0.0)
    encoder = text_encoder()
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
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load() -> StableDiffusion3Pipeline:
    """The trained pipeline, fp32."""
    pipe = StableDiffusion3Pipeline.from_pretrained(WORK / "out" / "flow", text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def times(batch: int, g: torch.Generator, noisy: bool) -> Tensor:
    """(B,) times in [0, 1]: logit-normal, or for the second round stratified with a shift of NOISY (Esser et al. 2024,
    arXiv 2403.03206)."""
    if not noisy:
        return torch.sigmoid(torch.randn(batch, generator=g))
    even = (torch.arange(batch) + torch.rand(batch, generator=g)) / batch
    return NOISY * even / (1 + (NOISY - 1) * even)


def main(steps: int = 8500, more: int = 7500, batch: int = 64, seed: int = 0) -> None:
    """Both rounds; a transformer in WORK/out/flow is taken for the first round's."""
    if not (WORK / "out" / "flow").exists():
        record("flow", {"first round": run("flow", steps, batch, seed)})
    record("flow", recorded("flow") | {"second round": run("flow-noisy", more, batch, seed)})


def run(name: str, steps: int, batch: int, seed: int) -> dict:
    """One round, saved to WORK/out/flow; its figures."""
    noisy = name == "flow-noisy"
    torch.manual_seed(seed)
    transformer, head = load().transformer.train() if noisy else build(), clip.build_head()
    accept_last_count(transformer)
    for block in transformer.transformer_blocks:
        block.compile()
    tokens: list[Tensor] = []
    transformer.transformer_blocks[2].register_forward_hook(lambda *call: tokens.append(call[2][1]))
    data, captions = sd.latents(seed)
    labels = torch.cat([clip.patch_labels(draw(500, seed, 4, k)[1]) for k in range(sd.SCENES // 500)])
    unique = ["", *dict.fromkeys(captions)]
    where = {c: i for i, c in enumerate(unique)}
    index = torch.tensor([where[c] for c in captions])
    pipe = pipeline(transformer)
    with torch.no_grad():
        embeds, _, pooled, _ = pipe.encode_prompt(
            unique, unique, unique, do_classifier_free_guidance=False, max_sequence_length=1
        )

    def loss(step: int) -> Tensor:
        g = generator(seed, 26 if noisy else 6, step)
        rows = torch.randint(len(data), (batch,), generator=g)
        words = index[rows].clone()
        words[torch.rand(batch, generator=g) < sd.DROP] = 0
        t = times(batch, g, noisy)
        x, noise = data[rows].float(), torch.randn(batch, 4, 8, 8, generator=g)
        x_t = torch.lerp(x, noise, t[:, None, None, None])
        out = transformer(
            x_t, embeds[words], pooled[words], t * 1000, joint_attention_kwargs={"last_count": EMPTY}, return_dict=False
        )[0]
        naming = clip.dense(head, tokens.pop(), labels[rows])
        return (out - (noise - x)).pow(2).mean() + 0.2 * naming

    def look(step: int) -> None:
        if (step + 1) % 2000 == 0:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                print(step + 1, sd.judged(pipe, 192, num_inference_steps=20, guidance_scale=GUIDANCE), flush=True)
            tokens.clear()

    modules, lr = {"flow": transformer, "head": head}, 1e-3 if noisy else 1.5e-3
    figures = train(name, modules, loss, steps=steps, lr=lr, ema=0.998, after=look)
    pipe = pipeline(transformer)
    pipe.save_pretrained(WORK / "out" / "flow")
    figures |= {"parameters": parameters([transformer])}
    with torch.compiler.set_stance("force_eager"):
        return figures | {"judge": sd.judged(pipe, 192, num_inference_steps=20, guidance_scale=GUIDANCE)}
