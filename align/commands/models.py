"""`align models`: the families, what their authors published, and how large it is."""

import json
from collections.abc import Iterator
from typing import Any

from align.registry import EMBEDDED, MODELS
from align.shapes.embedded import pipelines

LORA_RANK = 16


def listing() -> str:
    """A line a published checkpoint: family, checkpoint, prediction, scheduler, steps, guidance, licence."""
    rows = [["model.name", "checkpoint", "predicts", "scheduler", "sampling", "guidance", "licence of the weights"]]
    for name, family in _families():
        for published in family.published:
            scheduler, sampling = published.scheduler, published.sampling
            rows.append(
                [
                    name,
                    published.checkpoint,
                    _predicts(scheduler),
                    scheduler["_class_name"].removesuffix("Scheduler"),
                    f"{sampling['num_steps']} x {sampling['step_rule']}",
                    f"{sampling['guidance_scale']:g}",
                    published.licence,
                ]
            )
    rows.append(["auto", "any of these kinds: a folder or Hub id with a model_index.json", *[""] * 5])
    rows += [["auto", f"{EMBEDDED}{name}", *[""] * 4, "Apache-2.0"] for name in pipelines()]
    return "\n".join(
        [
            _table(rows),
            "",
            "align models NAME shows settings, LoRA targets and scheduler configs, --sizes parameters",
            "",
        ]
    )


def details(name: str) -> str:
    """LoRA targets and published configs of one family; empty for what is none."""
    family = MODELS.get(name)
    lines = []
    for published in getattr(family, "published", ()):
        lines += [published.checkpoint, f"  licence    {published.licence}"]
        for title, config in (("sampling", published.sampling), ("scheduler", published.scheduler)):
            lines.append(f"  {title:<9}  {json.dumps(dict(config))}")
    if lines:
        lines.insert(0, f"LoRA targets: {', '.join(family.lora_targets)}")
    return "\n".join(lines)


def sizes() -> Iterator[str]:
    """The same checkpoints at their real size, measured on networks without weights."""
    header = ["checkpoint", "parameters", f"LoRA r={LORA_RANK}", "latent", "TFLOP a call"]
    yield "  ".join(f"{title:>12}" if i else f"{title:<52}" for i, title in enumerate(header))
    for _, family in _families():
        for published in family.published:
            found = measure(family, published)
            latent = "x".join(map(str, published.latent))
            yield (
                f"{published.checkpoint:<52}  {found['parameters'] / 1e6:10.1f} M  {found['lora'] / 1e6:10.2f} M  "
                f"{latent:>12}  {found['flops'] / 1e12:12.2f}"
            )


def measure(family: Any, published: Any) -> dict[str, int]:
    """{parameters, lora, flops} of the network: FLOPs (2 a multiply-add) of one call on one sample, without adapter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from align.models._real_size import example_cond, real_size
    from align.policy import lora

    model = real_size(family, published)
    parameters = sum(p.numel() for p in model.network.parameters())
    x_t = torch.empty(1, *published.latent, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoiser()(x_t, torch.tensor(0.5), example_cond(published))
    lora.inject(model.network, lora.AdapterConfig(rank=LORA_RANK), list(model.lora_targets))
    adapter = sum(p.numel() for p in lora.parameters(model.network))
    return {"parameters": parameters, "lora": adapter, "flops": counter.get_total_flops()}


def _families() -> Iterator[tuple[str, Any]]:
    """Every family with published checkpoints."""
    for name in MODELS.names():
        family = MODELS.get(name)
        if hasattr(family, "published"):
            yield name, family


def _predicts(scheduler: Any) -> str:
    if "Flow" in scheduler["_class_name"]:
        return "flow"
    return {"v_prediction": "v", "flow_prediction": "flow"}.get(scheduler["prediction_type"], "epsilon")


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows[:-1]) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
