"""A detector that looks for what a prompt asks for: which objects, how many, of which colour, and where.

    soft:    mean of soft checks                        in [0, 1]; by soft counts and places, with a gradient
    log:     mean of log max(check, 0.0001)             in [-9.2, 0]; pulls hardest on what fails most
    verdict: 1 if every check holds, by GenEval's rule  0 or 1, no gradient

The demands are those of a file in GenEval's form (`demands`), or of a simple caption. Network: a zero-shot detector of
transformers (OWLv2: Minderer et al. 2023, arXiv 2306.09683; Grounding DINO: Liu et al. 2023, arXiv 2303.05499), or a
Mask2Former (rewards/_instances.py).
The checks: rewards/_composition.py; captions: rewards/_simple_captions.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewards import _composition as composition
from rewards import _demands as demands
from rewards._base import Reward
from rewards._card import Card
from rewards._colours import ColourReader
from rewards._config import RewardConfig
from rewards._errors import RewardError, refused
from rewards._instances import KIND, Instances, is_of_coco, known
from rewards._load import hf_config
from rewards._simple_captions import parse
from rewards._zero_shot import Detector as Network

OPEN, GENEVAL = 0.2, (0.3, 0.9)  # thresholds; GenEval's own for all prompts, and for those that count
LEAST = 1e-4  # of a check under the logarithm
SPARE = 2  # boxes whose colour is read beyond those that are asked for
MOST_COLOURED = 8


class DetectorConfig(RewardConfig):
    name: Literal["detector"] = "detector"
    model: str = "google/owlv2-base-patch16-ensemble"
    """A folder or Hub id in HF's format: an OWL-ViT, OWLv2 or Grounding DINO; or a Mask2Former of COCO's 80 objects,
    GenEval's own network: facebook/mask2former-swin-small-coco-instance."""
    form: Literal["soft", "log", "verdict"] = "soft"
    """`soft`: mean of the checks; `log`: of their logarithms; `verdict`: GenEval's, without a gradient."""
    demands: str | None = None
    """A .jsonl file in GenEval's form of what each prompt asks for; other prompts are read as simple captions."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """The probability from which a box counts; default: 0.2, of a Mask2Former GenEval's 0.3."""
    counting: float | None = Field(default=None, gt=0, lt=1)
    """The same for prompts whose tag is counting; default: of a Mask2Former GenEval's 0.9, otherwise the threshold."""
    colours: str | None = "openai/clip-vit-large-patch14"
    """The CLIP that names colours, GenEval's own; null: none is loaded, and prompts with a colour are refused."""
    query: str | None = None
    """What is asked of the network for a name, {} in it; default: "a photo of a {}", for Grounding DINO "a {}."."""

    card = Card(
        measures="Whether the objects that a prompt names are there, how many, of which colour and where.",
        range="[0, 1]; log [-9.2, 0]; verdict 0 or 1",
        size="583 M (OWLv2 base, and CLIP ViT-L/14 for colours)",
        hacking="Not measured. By its form: what the detector takes for the thing and is none; looks count nothing.",
        partner="hpsv2",
    )

    def licences(self) -> dict[str, str]:
        found = self._of_checkpoint(self.model)
        return found | (self._of_checkpoint(self.colours) if self.colours else {})

    def has_gradient(self) -> bool:
        return self.form != "verdict"

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        try:
            told = demands.read(self.demands) if self.demands else {}
        except RewardError:  # `conflicts` says so
            return iter(())
        coco = is_of_coco(self.model)

        def read(prompt: str) -> None:
            names = demanded(prompt, told, colours=self.colours is not None).names
            if coco:
                known(names)

        return refused(read, prompts)

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.query is not None and self.query.count("{}") != 1:
            yield ".query", f"is {self.query!r}. Put {{}} where the name of the object goes, once."
        try:
            if self.demands is not None:
                demands.read(self.demands)
        except RewardError as error:
            yield ".demands", str(error)


class Detector(Reward):
    """How far a picture meets its prompt's demands; higher meets more."""

    Config = DetectorConfig
    config: DetectorConfig

    def __init__(self, config: DetectorConfig, network: Any = None, colours: Any = None):
        super().__init__(config)
        self.known = demands.read(config.demands) if config.demands else {}
        if network is None and hf_config(config.model).get("model_type") == KIND:
            network = Instances(config.model)
        self.network: Any = network if network is not None else Network(config.model, config.query)
        own = GENEVAL if isinstance(network, Instances) else (OPEN, None)
        self.threshold = config.threshold or own[0]
        self.counting = config.counting or (self.threshold if config.threshold else own[1]) or self.threshold
        self.colours: Any = colours
        if colours is None and config.colours is not None:
            self.colours = ColourReader(config.colours)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [demanded(prompt, self.known, colours=self.colours is not None) for prompt in prompts]
        names = list(dict.fromkeys(name for one in asked for name in one.names))
        logits, boxes, *masks = self.network(images, names)
        scores = []
        for row, one in enumerate(asked):
            places = {name: names.index(name) for name in one.names}
            found = {name: composition.ordered(logits[row, k], boxes[row, k]) for name, k in places.items()}
            shapes = masks[0][row] if masks else None
            scores.append(self._scored(one, self._coloured(images[row], one, found, shapes)))
        return torch.stack(scores).to(images.device, torch.float32)

    def _coloured(
        self, image: Tensor, one: demands.Demands, found: dict[str, Any], masks: Tensor | None
    ) -> dict[str, Any]:
        for clause in one.include:
            if clause.colour is not None:
                seen = found[clause.name]
                boxes = seen.boxes[: min(clause.count + SPARE, max(MOST_COLOURED, clause.count))]
                shapes = () if masks is None else (masks[seen.order[: len(boxes)]],)
                found[clause.name] = seen._replace(colours=self.colours(image, boxes, clause.name, *shapes))
        return found

    def _scored(self, one: demands.Demands, found: Mapping[str, Any]) -> Tensor:
        threshold = self.counting if one.tag == "counting" else self.threshold
        if self.config.form == "verdict":
            return torch.tensor(float(all(ok for _, ok in composition.verdict(one, found, threshold))))
        checks = composition.soft_checks(one, found, threshold)
        return composition.mean(checks, LEAST if self.config.form == "log" else None)


def demanded(prompt: str, told: Mapping[str, demands.Demands], *, colours: bool) -> demands.Demands:
    """What a prompt asks for, as it is told or as a simple caption; a RewardError where that is not understood, and for
    colours where nothing names them."""
    found = told.get(prompt.strip()) or parse(prompt)
    if found.coloured and not colours:
        raise RewardError(f"the prompt {prompt!r} asks for a colour, and detector.colours is null. Name a CLIP.")
    return found
