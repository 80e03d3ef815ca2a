"""The detector: against transformers' pipeline, GenEval's verdict on known boxes, soft counts and their gradient."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reward_toys import noise, smooth, to_tensor
from tiny_detectors import Told

from rewards import RewardError
from rewards._composition import ordered, weights
from rewards._demands import Clause, read
from rewards._simple_captions import parse
from rewards._zero_shot import Detector as Network
from rewards.detector import Detector, DetectorConfig

SIZES = [(40, 56), (96, 64), (20, 30)]  # smaller, larger, enlarged
TALL = (150, 50)  # PIL 13 would begin with the height: see docs/develop/architecture.md


@pytest.mark.parametrize("kind", ["owlvit", "owlv2", "grounding-dino"])
def test_logits_and_boxes_are_those_of_transformers(kind, tiny_detectors):
    """At its own preprocessing by PIL, shrinking, enlarging, and of odd shapes."""
    from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

    folder = tiny_detectors[kind]
    own = Network(str(folder), "{}" if kind != "grounding-dino" else "{}.")
    theirs = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for picture, sizes in ((noise, SIZES), (smooth, [TALL] if kind == "owlv2" else [])):
        for height, width in sizes:
            image = picture(height, width)
            pixels = processor(image, return_tensors="pt")
            for name in ("red circle",):
                asked = name if kind != "grounding-dino" else f"{name}."
                padding = {} if kind == "grounding-dino" else {"padding": "max_length", "truncation": True}
                with torch.no_grad():
                    out = theirs(**tokenizer(asked, return_tensors="pt", **padding), **pixels)
                    logits, boxes = own(to_tensor(image), [name])
                size = torch.tensor([[height, width]])
                seen = processor.post_process_object_detection(out, threshold=0.0, target_sizes=size)[0]
                torch.testing.assert_close(logits[0, 0].sigmoid(), seen["scores"], rtol=0, atol=1e-4)
                torch.testing.assert_close(boxes[0, 0], seen["boxes"], rtol=0, atol=1e-2)
                assert logits.std() > 1e-3, "weights under which nothing differs would hide all bugs"


def test_it_agrees_with_the_pipeline(tiny_detectors):
    from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
    from transformers import ZeroShotObjectDetectionPipeline as Pipeline

    folder = tiny_detectors["owlv2"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = Pipeline(
        model=AutoModelForZeroShotObjectDetection.from_pretrained(folder),
        tokenizer=tokenizer,
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )
    names = ["red circle", "square"]
    image = noise(60, 90)
    logits, _ = Network(str(folder), "{}")(to_tensor(image), names)
    for k, name in enumerate(names):
        seen = [one["score"] for one in pipeline(image, candidate_labels=names, threshold=0.0) if one["label"] == name]
        assert sorted(seen) == pytest.approx(sorted(logits[0, k].sigmoid().tolist()), abs=1e-4)


def reward(objects, form="soft", colours=None, **settings) -> Detector:
    config = DetectorConfig(form=form, colours=None, threshold=0.3, **settings)
    return Detector(config, network=Told(objects), colours=colours)


def paint(image, boxes, name):
    """A reader of colours that takes the box's number for it: red, orange, yellow, ..."""
    return torch.eye(10)[: len(boxes)] * 0.98 + 0.002


IMAGE = torch.full((1, 3, 64, 64), 0.5)
LEFT, RIGHT, BELOW = (0, 20, 16, 40), (44, 20, 60, 40), (2, 48, 14, 62)
GOLDEN = [
    ({"dog": [(0.9, *LEFT)]}, "a photo of a dog", 1),
    ({"dog": [(0.2, *LEFT)]}, "a dog", 0),
    ({"dog": [(0.9, *LEFT), (0.8, *RIGHT)]}, "two dogs", 1),
    ({"dog": [(0.9, *LEFT), (0.8, *RIGHT)]}, "three dogs", 0),
    ({"dog": [(0.9, *LEFT), (0.8, *RIGHT)]}, "a dog", 0),
    ({"dog": [(0.9, *LEFT)], "cat": [(0.9, *RIGHT)]}, "a dog and a cat", 1),
    ({"dog": [(0.9, *LEFT)]}, "a dog and a cat", 0),
    ({"dog": [(0.9, *LEFT)], "cat": [(0.9, *RIGHT)]}, "a dog left of a cat", 1),
    ({"dog": [(0.9, *LEFT)], "cat": [(0.9, *RIGHT)]}, "a dog to the right of a cat", 0),
    ({"dog": [(0.9, *LEFT)], "cat": [(0.9, *BELOW)]}, "a dog above a cat", 1),
    ({"dog": [(0.9, *LEFT)], "cat": [(0.9, *BELOW)]}, "a dog left of a cat", 0),
    ({"dog": [(0.9, *LEFT)]}, "a red dog", 1),
    ({"dog": [(0.9, *LEFT)]}, "a blue dog", 0),
]


@pytest.mark.parametrize(("objects", "prompt", "right"), GOLDEN)
def test_verdicts_on_known_boxes(objects, prompt, right):
    assert float(reward(objects, "verdict", paint)(IMAGE, [prompt])[0]) == right
    soft = float(reward(objects, "soft", paint)(IMAGE, [prompt])[0])
    assert soft > 0.93 if right else soft < 0.85


def test_a_soft_count_counts_an_object_once():
    """Boxes that overlap are one object; far above the threshold the count is the number of objects."""
    boxes = [(0.97, *LEFT), (0.95, 1, 21, 17, 41), (0.96, *RIGHT), (0.02, *BELOW)]
    logits, places = Told({"dog": boxes})(IMAGE, ["dog"])
    assert float(weights(ordered(logits[0, 0], places[0, 0]), 0.3).sum()) == pytest.approx(2, abs=0.1)


def test_the_gradient_moves_an_object_to_where_it_is_asked_for():
    """Boxes that follow a parameter: ascending takes the dog to the left of the cat, and another dog away."""
    place = torch.tensor([46.0, 24.0], requires_grad=True)
    third = torch.tensor(0.0, requires_grad=True)

    class Follows(torch.nn.Module):
        def forward(self, images, names):
            dog = torch.stack([place - 8, place + 8]).flatten()
            boxes = {"dog": [dog, dog.new_tensor([0, 46, 12, 60.0])], "cat": [dog.new_tensor([24, 20, 36, 40.0])] * 2}
            logits = {"dog": [dog.new_tensor(3.0), third], "cat": [dog.new_tensor(3.0), dog.new_tensor(-9.0)]}
            return (
                torch.stack([torch.stack(logits[n]) for n in names])[None],
                torch.stack([torch.stack(boxes[n]) for n in names])[None],
            )

    one = Detector(DetectorConfig(form="log", colours=None, threshold=0.3), network=Follows())
    optimiser = torch.optim.Adam([place, third], lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        (-one(IMAGE, ["a dog left of a cat"])).sum().backward()
        optimiser.step()
    assert float(place.detach()[0]) < 20 and float(third.detach()) < -2
    assert float(one(IMAGE, ["a dog left of a cat"]).detach()) > -0.1


@pytest.mark.parametrize(
    ("caption", "clauses"),
    [
        ("a photo of a bench", [Clause("bench")]),
        ("A photo of four green wine glasses.", [Clause("wine glasses", 4, "green")]),
        ("a photo of three sports balls", [Clause("sports ball", 3)]),
        ("two knives, a dog and an orange", [Clause("knife", 2), Clause("dog"), Clause("orange")]),
        ("an orange orange and a black teddy bear", [Clause("orange", 1, "orange"), Clause("teddy bear", 1, "black")]),
        ("a photo of a dog right of a teddy bear", [Clause("teddy bear"), Clause("dog", 1, None, "right of", 0)]),
    ],
)
def test_simple_captions(caption, clauses):
    found = parse(caption)
    assert list(found.include) == clauses
    assert all(sum(c.count for c in clauses if c.name == e.name) + 1 == e.count for e in found.exclude)


@pytest.mark.parametrize("caption", [
    "a lighthouse in a storm", "dogs", "a very old little red dog", "some dogs", "a dog riding a horse on the moon", "",
    "a dog left of a cat above a mouse", "a 4k photo of a cat with a hat", "the dog",
])  # fmt: skip
def test_what_it_does_not_understand_is_said(caption):
    with pytest.raises(RewardError, match="is not understood") as caught:
        reward({})(IMAGE, [caption])
    assert "\n" not in str(caught.value)


RECORD = {
    "tag": "position", "prompt": "a dog, somewhere right of a bench",
    "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
}  # fmt: skip


def test_demands_come_from_a_file_of_genevals_form(tmp_path):
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps(RECORD) + "\n\n")
    seen = {"dog": [(0.9, *RIGHT)], "bench": [(0.9, *LEFT)]}
    assert float(reward(seen, "verdict", demands=str(file))(IMAGE, [RECORD["prompt"]])[0]) == 1
    assert float(reward(seen, "verdict", demands=str(file))(IMAGE, ["a dog left of a bench"])[0]) == 0
    told = DetectorConfig(demands=str(file), colours=None)
    assert not list(told.unreadable([RECORD["prompt"], "a dog left of a bench"]))
    (said,) = told.unreadable(["a red dog"])
    assert "asks for a colour, and detector.colours is null" in said
    with pytest.raises(RewardError, match="asks for a colour"):
        reward(seen, "verdict")(IMAGE, ["a red dog"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"include": []}, 'line 1 has no "include"'),
        ({"include": [{"count": 1}]}, "include 1 is"),
        ({"include": [{"class": "dog", "count": 0}]}, "count is 0"),
        ({"include": [{"class": "dog", "color": "teal"}]}, "color is 'teal'"),
        ({"include": [{"class": "dog", "position": ["right of", 0]}]}, "an earlier clause"),
        ({"include": [{"class": "dog", "size": "big"}]}, "the key size is unknown"),
        ({"prompt": ""}, 'no text under "prompt"'),
        ({"exclude": "cats"}, '"exclude" is no list'),
    ],
)
def test_what_is_wrong_in_such_a_file(tmp_path, change, said):
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps(RECORD | change))
    with pytest.raises(RewardError, match=said):
        read(str(file))
    told = dict(DetectorConfig(demands=str(file)).conflicts({}))
    assert said in told[".demands"]


def test_colours_are_read_where_a_box_lies(tiny_clip):
    """The same cut-out gives the same colours wherever it lies; thin and outlying boxes are read too."""
    from rewards._colours import ColourReader

    reader = ColourReader(str(tiny_clip))
    patch = np.asarray(smooth(24, 24))
    canvas = np.zeros((80, 100, 3), dtype=np.uint8)
    canvas[10:34, 50:74] = patch
    image = to_tensor(Image.fromarray(canvas))[0].requires_grad_()
    seen = reader(image, torch.tensor([[50.0, 10, 74, 34], [99.6, 70, 140, 70.2], [-5, -5, 3, 90]]), "dog")
    alone = reader(to_tensor(Image.fromarray(patch))[0], torch.tensor([[0.0, 0, 24, 24]]), "dog")
    torch.testing.assert_close(seen[:1], alone, atol=1e-5, rtol=0)
    assert torch.allclose(seen.sum(1), torch.ones(3), atol=1e-5)
    (gradient,) = torch.autograd.grad(seen[0, 0], image)
    assert float(gradient[:, 10:34, 50:74].abs().sum()) > 0 == float(gradient[:, :9].abs().sum())
