"""Lists of questions in the forms of their benchmarks, the rules, and the tables that answers make."""

import json

import pytest
import torch

from align.errors import UserError
from align.evaluation.questions import Asked, Examination, Question, examination
from align.evaluation.verdicts import SCORE, answered, as_csv, examined, rows, scored

ROW = {
    "prompt": "two red dogs", "atom_count": 3, "skills": ["count", "attribute", "object"],
    "vqa_list": [["How many dogs are there?", "two"], ["Are they red?", "Yes"], ["Is there a dog?", "Yes"]],
}  # fmt: skip
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,detailed,tuple,question_natural_language
coco1,"a dog, red",,1,0,entity,whole,entity - dog,Is there a dog?
coco1,"a dog, red",,2,1,attribute,color,attribute - red,Is the dog red?
coco1,"a dog, red",,3,"1,2",relation,spatial,relation,Is the red dog left?
diff7_2,a cat,,1,0,entity,whole,entity - cat,Is there a cat?
"""


def given(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_geneval2(tmp_path):
    file = given(tmp_path, "geneval2_data.jsonl", json.dumps(ROW) + "\n")
    exam = examination(f"geneval2={file}")
    assert (exam.rule, exam.judge["name"]) == ("geometric", "vqascore")
    (one,) = exam.asked
    assert one.questions[0] == Question("How many dogs are there?", "two", "count") and one.category == "3 atoms"
    for wrong in ({"skills": ["count"]}, {"vqa_list": [["a"], ["b", "Yes"], ["c", "Yes"]]}, {"vqa_list": None}):
        given(tmp_path, "geneval2_data.jsonl", json.dumps(ROW | wrong))
        with pytest.raises(UserError, match="not laid out as published") as caught:
            examination(f"geneval2={file}")
        assert "\n" not in str(caught.value)


def test_dpg_with_its_graph(tmp_path):
    exam = examination(f"dpg={given(tmp_path, 'dpg_bench.csv', DPG)}")
    assert [len(one.questions) for one in exam.asked] == [3, 1] and exam.rule == "graph"
    assert [q.parents for q in exam.asked[0].questions] == [(), (0,), (0, 1)]
    assert [one.category for one in exam.asked] == ["coco", "diff"]


def test_geneval_is_judged_by_the_detector_with_its_file(tmp_path):
    record = {"tag": "counting", "prompt": "a photo of two dogs", "include": [{"class": "dog", "count": 2}]}
    file = given(tmp_path, "evaluation_metadata.jsonl", json.dumps(record))
    exam = examination(f"geneval={file}")
    network = "facebook/mask2former-swin-small-coco-instance"
    assert exam.judge == {"name": "detector", "form": "verdict", "model": network, "demands": str(file)}
    assert exam.rule == "tasks"
    assert exam.asked[0].questions == (Question("a photo of two dogs", "Yes", "counting"),)


def test_compbench_asks_for_each_phrase(tmp_path):
    for kind in ("color", "shape", "texture"):
        given(tmp_path, f"{kind}_val.txt", f"a {kind} bench and a blue bowl\n")
    exam = examination(f"t2i-compbench={tmp_path}")
    assert [one.category for one in exam.asked] == ["color", "shape", "texture"] and exam.rule == "product"
    assert exam.asked[0].questions[1].text == "Is there a blue bowl in the image?"


def test_compbench_plus_plus_asks_of_relations_and_numbers_as_a_whole(tmp_path):
    kinds = ("color", "shape", "texture", "spatial", "non_spatial", "complex", "3d_spatial", "numeracy")
    for kind in kinds:
        given(tmp_path, f"{kind}_val.txt", "two boys and a kite\n")
    exam = examination(f"t2i-compbench++={tmp_path}")
    assert [one.category for one in exam.asked] == list(kinds) and exam.rule == "product"
    assert [len(one.questions) for one in exam.asked] == [2, 2, 2, 1, 1, 1, 1, 1]
    assert exam.asked[-1].questions[0] == Question('Does the image show "two boys and a kite"?', "Yes", "numeracy")


def unigenbench(*rows):
    head = "index,prompt_en,sub_dims_en\n"
    return head + "".join(f'{k},{prompt},"{told}"\n' for k, (prompt, told) in enumerate(rows))


def told(points, said, between=", "):
    quoted = [", ".join(f'""{one}""' for one in several) for several in (points, said)]
    quoted[0] = quoted[0].replace(", ", between)
    return (
        f'{{""Primary Categories"": ""Art"", ""Testpoints"": [{quoted[0]}], ""Testpoint Description"": [{quoted[1]}]}}'
    )


def test_unigenbench(tmp_path):
    """Also a point without a description, and a comma that is missing, as the published files have them."""
    points = ["Attribute - Size", "Style"]
    rows = [("a small cat", told(points, ["small cat", "ink"])), ("a dog", told(points, ["", "oil"], " "))]
    for name, file in (("unigenbench", "test_prompts_en.csv"), ("unigenbench-long", "test_prompts_en_long.csv")):
        exam = examination(f"{name}={given(tmp_path, file, unigenbench(*rows))}")
        assert exam.rule == "points" and [one.category for one in exam.asked] == ["Art", "Art"]
        first, second = exam.asked[0].questions
        assert first == Question('Does the image meet "small cat" (Attribute - Size)?', "Yes", "Attribute")
        assert second.skill == "Style" and exam.asked[1].questions[0].text.startswith('Does the image meet "a dog"')
        for wrong in (told(points, ["one"]), "{}", told([], [])):
            given(tmp_path, file, unigenbench(("a cat", wrong)))
            with pytest.raises(UserError, match="row 2 has no prompt_en, or no test points") as caught:
                examination(f"{name}={tmp_path / file}")
            assert "\n" not in str(caught.value)


def test_of_test_points_each_counts_alike():
    exam = Examination("u", "points", {}, [asked("a", "a", "b"), asked("a")])
    answers = [torch.tensor([[0.9, 0.4, 0.8]]), torch.tensor([[0.2]])]
    table = rows(answers, exam)
    assert float(table[SCORE].mean()) == pytest.approx(2 / 4)
    assert float(table["a"].mean()) == pytest.approx(1 / 3) and float(table["b"].mean()) == 1


OWN = {
    "prompt": "a dog",
    "questions": [{"question": "A dog?"}, {"question": "Is it red?", "skill": "s", "parents": [1]}],
}


def test_ones_own_list(tmp_path):
    exam = examination(str(given(tmp_path, "mine.jsonl", json.dumps(OWN))))
    assert exam.rule == "mean" and exam.asked[0].questions[1] == Question("Is it red?", "Yes", "s", (0,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"questions": []}, "asks nothing"),
        ({"questions": [{"question": ""}]}, "question 1 has no text"),
        ({"questions": [{"question": "a", "parents": [1]}]}, "not places of earlier questions"),
        ({"prompt": 3}, "line 1 has no prompt and questions"),
    ],
)
def test_what_is_wrong_in_ones_own_list(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        examination(str(given(tmp_path, "mine.jsonl", json.dumps(OWN | change))))
    with pytest.raises(UserError, match="neither a file nor one of geneval"):
        examination("genval")


def asked(*skills, parents=None) -> Asked:
    parents = parents or [()] * len(skills)
    pairs = enumerate(zip(skills, parents, strict=True))
    return Asked("p", "", tuple(Question(f"q{k}", "Yes", skill, above) for k, (skill, above) in pairs))


def test_the_rules():
    a = torch.tensor([[0.9, 0.4, 0.8], [1.0, 1.0, 0.2]])
    plain = asked("x", "y", "x")
    assert scored(a, plain, "mean")[0].tolist() == pytest.approx([0.7, 2.2 / 3])
    assert scored(a, plain, "product")[0].tolist() == pytest.approx([0.288, 0.2])
    assert scored(a, plain, "geometric")[0].tolist() == pytest.approx([0.288 ** (1 / 3), 0.2 ** (1 / 3)])
    chained = asked("x", "y", "z", parents=[(), (0,), (1,)])
    assert scored(a, chained, "graph")[1].tolist() == [[1, 0, 0], [1, 1, 0]], "a child of a no is none"
    assert scored(torch.tensor([[0.0, 1.0]]), asked("x", "y"), "geometric")[0].tolist() == [0.0]


def test_the_number_of_geneval_is_the_mean_of_its_tasks():
    exam = Examination("g", "tasks", {}, [asked("a"), asked("a"), asked("a"), asked("b")])
    answers = [torch.tensor([[v], [v]], dtype=torch.float64) for v in (1.0, 0.0, 0.0, 1.0)]
    table = rows(answers, exam)
    assert float(table[SCORE].mean()) == pytest.approx((1 / 3 + 1) / 2)
    assert float(table["a"].mean()) == pytest.approx(1 / 3) and float(table["b"].mean()) == 1


def test_tables_are_paired():
    exam = Examination("mine", "mean", {}, [asked("count", "object")._replace(prompt=f"p{i}") for i in range(6)])
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(6, 2, 2, generator=generator, dtype=torch.float64) * 0.8
    found = examined(exam, "it", list(hard), {"arm": list(hard + 0.1)})
    gain = found.arms["arm"]["count"].difference
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.questions == {SCORE: 12, "count": 6, "object": 6} and found.prompts[SCORE] == 6
    assert found.baseline["object"].mean == pytest.approx(float(hard[:, :, 1].mean()))
    assert len(as_csv(found).splitlines()) == 4
    same = Examination("mine", "mean", {}, [asked("count", "object")] * 6)
    gain = examined(same, "it", list(hard), {"arm": list(hard + 0.1)}).arms["arm"]["count"]
    assert gain.num_distinct == 1 and gain.difference.low is None, "one prompt, however often it is asked"


def test_judges_are_asked_the_questions_or_scored_on_them():
    class Judge:
        def __init__(self, reward):
            self.rewards = {"it": reward}

        def __call__(self, images, prompts):
            return {"it": self.rewards["it"](images, prompts)}

    class Asking:
        def answers(self, images, questions, expected):
            return images.mean((1, 2, 3)) * torch.tensor([0.5 if e == "Yes" else 1.0 for e in expected])

    images = torch.tensor([[0.2, 0.4], [0.6, 0.8]]).view(2, 2, 1, 1, 1).expand(2, 2, 3, 4, 4)
    two = [asked("x", "y"), Asked("p", "", (Question("how many", "two"),))]
    first, second = answered(Judge(Asking()), "it", images, two)
    torch.testing.assert_close(first, torch.tensor([[0.1, 0.1], [0.2, 0.2]]))
    torch.testing.assert_close(second, torch.tensor([[0.6], [0.8]]))
    plain = answered(Judge(lambda x, p: x.mean((1, 2, 3))), "it", images, two)
    torch.testing.assert_close(plain[0], torch.tensor([[0.2, 0.2], [0.4, 0.4]]))
    with pytest.raises(UserError, match=r"answered 1\.2 to 'q0'; an answer lies in \[0, 1\]"):
        answered(Judge(lambda x, p: x.mean((1, 2, 3)) + 1), "it", images, two)
