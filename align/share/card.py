"""The adapter's card, adapter/README.md: what it was trained on, what it reached, at which strength to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from align.config import Recipe
from align.figures import pages
from align.files import code as files
from align.files.output import write as write_file
from align.models._network import is_file
from align.models._pipeline import PipelineModel
from align.policy.soft_prompt import FILE_NAME as TOKENS
from align.registry import EMBEDDED, model_family
from align.reports import summary
from align.reports.summary import Summary
from align.share import solver_card
from align.share.branches import branches
from align.share.stock import stock
from rewards._numerals import counted

FILE_NAME = "README.md"
TAG = "diffalign"  # by this a published repository is known to be one of ours
HUB_LICENCES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma "
    "unknown other".split()
)
"""The Hub's names for licences, in its lower case; others go as license: other, license_name: NAME."""


class Shown(NamedTuple):
    """What a published card shows beside the text: paths inside the repository."""

    grid: str | None
    """Before and after, side by side."""
    images: Mapping[str, str]
    """{path of an image after training: its prompt}."""


NOTHING = Shown(None, {})


def write(folder: Path, recipe: Recipe, found: Summary) -> Path:
    """Writes the card of a finished run into its adapter's folder."""
    learned = (folder / solver_card.SOLVER).is_file()
    return write_file(folder / FILE_NAME, solver_card.text(recipe, found, folder) if learned else text(recipe, found))


def text(
    recipe: Recipe, found: Summary, repo: str | None = None, shown: Shown = NOTHING, licence: str | None = None
) -> str:
    """The card: metadata as the Hub reads it, then Markdown. `repo` is where it is published; None: not yet.

    `licence` is the adapter's; by default its base model's, as far as that is known.
    """
    said = yaml.safe_dump(
        metadata(recipe, found, repo, shown, licence), sort_keys=False, allow_unicode=True, width=1000
    )
    swept: list[dict[str, Any]] = [entry for c in found.findings.values() for entry in c.get("sweep", ())]
    written = pages.page(
        "card.md",
        metadata=Markup(said.rstrip()),
        found=found,
        grid=shown.grid and Markup(shown.grid),
        gallery=bool(shown.images),
        within=lambda interval: Markup(str(interval)),  # its brackets are no link
        base=_base_name(recipe),
        what=_what(recipe),
        rewards=", ".join(f"{label} x {reward.weight:g}" for label, reward in recipe.rewards.items()) or "none",
        batch_size=recipe.train.batch_size,
        unmoved=summary.unmoved(found),
        student=recipe.sampling if getattr(recipe.objective, "few_step", False) else None,
        code=Markup("\n".join(_use(recipe, found, repo, next(iter(shown.images.values()), "a red circle")))),
        held_out=summary.held_out(found.report_seen),
        advice=_advice(found),
        swept=swept,
        made=_made(recipe, found),
        own=files.own(recipe.dump()),
    )
    return written.rstrip() + "\n"


def metadata(
    recipe: Recipe, found: Summary, repo: str | None, shown: Shown = NOTHING, licence: str | None = None
) -> dict[str, Any]:
    """The card's YAML block; keys as the Hub's model cards have them."""
    base = _base(recipe)
    said: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if is_hub_id(base) else {}
    said |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    lora = getattr(recipe.objective, "token", None) is None
    kind = ["lora", "text-to-image", "template:diffusion-lora"] if lora else ["textual_inversion", "text-to-image"]
    said["tags"] = [*kind, TAG, found.method]
    if licence := licence or base_licence(recipe):
        known = licence.lower() in HUB_LICENCES
        said |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence}
    if shown.images:
        said["widget"] = [{"text": prompt, "output": {"url": path}} for path, prompt in shown.images.items()]
    if found.scores:
        score = next(iter(found.scores.values()))
        prompts, number = str(found.report_prompts), counted(score.num_prompts, "prompt")
        if score.asked() != str(score.num_prompts):  # some repeat
            number = f"{score.asked()} prompts"
        prompts += "" if prompts.startswith(number) else f", {number}"
        result = {
            "task": {"type": "text-to-image"},
            "dataset": {"type": str(found.report_prompts), "name": prompts},
            "metrics": [
                {"type": label, "name": f"{label} {when}", "value": round(value.mean, 6)}
                for label, score in found.scores.items()
                for when, value in (("before", score.before), ("after", score.after))
            ],
        }
        name = repo.rpartition("/")[2] if repo else f"{found.method}-{_base_name(recipe)}"
        said["model-index"] = [{"name": name, "results": [result]}]
    return said


def recommended_strength(found: Summary) -> float:
    """What the guard recommends; 1 where no hook has tried."""
    return summary.recommended_strength(found.findings)


def _advice(found: Summary) -> str:
    """The strength to use, and whether the adapter is surely better than the base at it."""
    said = next((c for c in found.findings.values() if "recommended_strength" in c), {})
    word = "Recommended strength:" if (said.get("gain") or {}).get("better", True) else "The strength is left at"
    return f"{word} {recommended_strength(found):g}{summary.gain(said)}"


def base_licence(recipe: Recipe) -> str | None:
    """The licence of the model's weights where its family knows the checkpoint; an adapter comes under it too."""
    base = _base(recipe)
    if base.startswith(EMBEDDED):
        return "apache-2.0"
    published = getattr(model_family(recipe.model), "published", ())
    return next((entry.licence for entry in published if entry.checkpoint == base), None)


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint is named as on the Hub, owner/name, and is no folder here."""
    plain = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "~", "/", EMBEDDED))
    return plain and not Path(checkpoint).exists()


def _base(recipe: Recipe) -> str:
    return str(getattr(recipe.model, "checkpoint", ""))


def _base_name(recipe: Recipe) -> str:
    """As it is in headings: a folder of this machine by its name only."""
    base = _base(recipe)
    return base if is_hub_id(base) or base.startswith(EMBEDDED) else Path(base).name


def _use(recipe: Recipe, found: Summary, repo: str | None, prompt: str) -> Sequence[str]:
    """From nothing to an image, drawn as the scores were made; more where the base model is put together first."""
    base, drawn = _base(recipe), stock(recipe)
    names = sorted({"DiffusionPipeline", drawn.scheduler or "DiffusionPipeline"})
    lines = [f"from diffusers import {', '.join(names)}"]
    place = json.dumps(base) if is_hub_id(base) else '"FOLDER_OF_THE_BASE_MODEL"'
    if base.startswith(EMBEDDED):
        lines = ["import torch", *lines, "from align.shapes.embedded import resolve"]
        place = f"resolve({json.dumps(base)}), torch_dtype=torch.float32"  # kept in half precision, run on any CPU
    if revision := getattr(recipe.model, "revision", None):
        place += f", revision={json.dumps(revision)}"
    lines += ["", f"pipeline = DiffusionPipeline.from_pretrained({place})"]
    if network := getattr(recipe.model, "network", None):
        lines += _network(str(network), model_family(recipe.model).network_name)
    if merged := getattr(recipe.model, "base_adapter", None):
        path, _, file = str(merged).partition(":")
        weight = f", weight_name={json.dumps(file)}" if file else ""
        lines += [f"pipeline.load_lora_weights({json.dumps(path)}{weight})", "pipeline.fuse_lora()"]
        lines += ["pipeline.unload_lora_weights()"]
    return [
        *lines,
        *drawn.lines(),
        *_loading(recipe, repo, recommended_strength(found)),
        *(split.lines() if (split := branches(recipe, recommended_strength(found))) else ()),
        f"image = pipeline(prompt={json.dumps(prompt, ensure_ascii=False)}, {drawn.arguments()}).images[0]",
    ]


def _what(recipe: Recipe) -> str:
    token = getattr(recipe.objective, "token", None)
    return f"LoRA, rank {recipe.adapter.rank}" if token is None else f"Learnt tokens, {token} in prompts"


def _network(source: str, part: str) -> list[str]:
    """The lines that put a network of its own into `pipeline`."""
    if is_file(source):
        repo, _, file = source.rpartition(":")
        place = f"hf_hub_download({json.dumps(repo)}, {json.dumps(file)})" if repo else '"FILE_OF_THE_NETWORK"'
        imports = ["from huggingface_hub import hf_hub_download"] if repo else []
        return [
            *imports,
            "from safetensors.torch import load_file",
            f"pipeline.{part}.load_state_dict(load_file({place}))",
        ]
    place = json.dumps(source) if is_hub_id(source) else '"FOLDER_OF_THE_NETWORK"'
    return [f'pipeline.{part} = pipeline.{part}.from_pretrained({place}, subfolder="{part}")']


def _loading(recipe: Recipe, repo: str | None, strength: float) -> list[str]:
    """The adapter onto `pipeline`; a family that diffusers has no LoRA loader for brings its own way."""
    if token := getattr(recipe.objective, "token", None):
        place = json.dumps(repo or "THIS_FOLDER")
        return [f'pipeline.load_textual_inversion({place}, weight_name="{TOKENS}")  # then {token} stands in prompts']
    family = model_family(recipe.model)
    if getattr(family, "load_adapter", PipelineModel.load_adapter) is PipelineModel.load_adapter:
        place = json.dumps(repo or "THIS_FOLDER")
        return [
            f'pipeline.load_lora_weights({place}, adapter_name="align")',
            f'pipeline.set_adapters("align", {strength:g})',
        ]
    network, place = family.network_name, f"snapshot_download({json.dumps(repo)})" if repo else '"THIS_FOLDER"'
    return [
        "from pathlib import Path  # diffusers has no load_lora_weights for this pipeline",
        *(["from huggingface_hub import snapshot_download"] if repo else []),
        "from align.models._plain_adapter import attach",
        f'attach(pipeline.{network}, Path({place}), component="{network}", strength={strength:g})',
    ]


def _made(recipe: Recipe, found: Summary) -> dict[str, str]:
    return {
        "seed": str(found.seed),
        "licences of the rewards": "; ".join(f"{k}: {r.licence_text()}" for k, r in recipe.rewards.items()) or "none",
        "hardware": f"{found.hardware}; {found.num_processes} process" + ("es" if found.num_processes != 1 else ""),
        "cost": f"{found.seconds:.0f} s of training, {found.network_calls:,} rows through the network"
        + f", {found.peak_rss_mib / 1024:.1f} GiB of memory"
        + (f", {found.peak_gpu_mib / 1024:.1f} GiB on the GPU" if found.peak_gpu_mib is not None else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
