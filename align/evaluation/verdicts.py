"""A benchmark's verdict on an evaluation's images: every question answered by a judge, scored by the benchmark's rule.

Answers are kept beside the images, a file a batch, so that an interrupted examination goes on where it was. A judge
that is made to be asked (`answers(images, questions, expected)`: vqascore, http) gives the probability of the right
answer; of any other reward the question is the prompt and the score the answer, which must lie in [0, 1].
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from align.data.prompts import words
from align.errors import UserError
from align.evaluation.questions import Asked, Examination, Rule
from align.evaluation.statistics import Gain, gains, means
from align.figures.statistics import Interval

TABLE = "benchmark.csv"
SCORE = "score"  # the row of the benchmark's own number


class Examined(BaseModel):
    """What a benchmark says: the score by its rule, and the share of right answers of each skill."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    rule: str
    judge: str
    """The label of the reward that answered."""
    questions: dict[str, int]
    """{row: its questions}."""
    prompts: dict[str, int]
    """{row: the prompts that have some}."""
    baseline: dict[str, Interval]
    """{row: its mean}; the row "score" is the benchmark's number, the others are skills."""
    arms: dict[str, dict[str, Gain]]
    """{arm: {row: against the baseline, paired by prompt and seed}}."""


def answered(judge: Any, label: str, images: Tensor, asked: Sequence[Asked]) -> list[Tensor]:
    """Images (P, K, 3, H, W) of P prompts -> for each the answers (K, its questions) in [0, 1]."""
    reward = judge.rewards[label]
    rows = [(p, k, q) for p, one in enumerate(asked) for q in one.questions for k in range(images.shape[1])]
    pictures = torch.stack([images[p, k] for p, k, _ in rows])
    texts = [q.text for _, _, q in rows]
    with torch.no_grad():
        try:
            if hasattr(reward, "answers"):
                found = reward.answers(pictures, texts, [q.answer for _, _, q in rows])
            else:
                found = judge(pictures, texts)[label]
        except ValueError as error:
            raise UserError(f"--benchmark: {label}: {error}") from error
    found = found.float().cpu()
    wrong = (~((found >= -1e-6) & (found <= 1 + 1e-6))).nonzero()
    if len(wrong):
        raise UserError(
            f"--benchmark: {label} answered {float(found[wrong[0, 0]]):.4g} to {texts[int(wrong[0, 0])]!r}; an answer "
            "lies in [0, 1]. Take a judge or a form of it that says how true something is."
        )
    sizes = [len(one.questions) * images.shape[1] for one in asked]
    return [part.clamp(0, 1).view(-1, images.shape[1]).T for part in found.split(sizes)]


def scored(answers: Tensor, one: Asked, rule: Rule) -> tuple[Tensor, Tensor]:
    """Answers (K, Q) of one prompt -> (score (K,), what each question is worth (K, Q))."""
    values = answers.double()
    if rule in ("graph", "points"):
        met = (values > 0.5).double()
        values = met.clone()
        for place, question in enumerate(one.questions):
            for parent in question.parents:
                values[:, place] = values[:, place] * met[:, parent]
        return values.mean(1), values
    if rule == "geometric":
        return values.log().mean(1).exp(), values
    return (values.prod(1) if rule == "product" else values.mean(1)), values


def rows(found: Sequence[Tensor], exam: Examination) -> dict[str, Tensor]:
    """{row: (P', K)}: the score of every prompt, and of each skill the mean over a prompt's questions of it."""
    pairs = [scored(answers, one, exam.rule) for answers, one in zip(found, exam.asked, strict=True)]
    table: dict[str, list[Tensor]] = {SCORE: [score for score, _ in pairs]}
    for one, (_, values) in zip(exam.asked, pairs, strict=True):
        for skill in dict.fromkeys(q.skill for q in one.questions if q.skill):
            places = [k for k, q in enumerate(one.questions) if q.skill == skill]
            table.setdefault(skill, []).append(values[:, places].mean(1))
    stacked = {row: torch.stack(values) for row, values in table.items()}
    if exam.rule == "tasks":
        stacked[SCORE] = stacked[SCORE] * _shares(exam.asked)[:, None]
    if exam.rule == "points":
        stacked = {row: values * _counts(exam.asked, row)[:, None] for row, values in stacked.items()}
    return stacked


def _has(one: Asked, row: str) -> bool:
    """Whether a prompt stands in a row of the table."""
    return row == SCORE or any(question.skill == row for question in one.questions)


def _counts(asked: Sequence[Asked], row: str) -> Tensor:
    """(P',): a prompt's number of questions in a row, by which the mean over prompts counts each question alike; 1 on
    the average."""
    numbers = [sum(row in (SCORE, q.skill) for q in one.questions) for one in asked]
    counted = torch.tensor([number for number in numbers if number], dtype=torch.float64)
    return counted / counted.mean()


def _shares(asked: Sequence[Asked]) -> Tensor:
    """(P,): a prompt's weight, by which the mean over prompts is the mean of the tasks' means; 1 on the average."""
    tasks = [one.questions[0].skill for one in asked]
    return torch.tensor([len(tasks) / (len(set(tasks)) * tasks.count(task)) for task in tasks], dtype=torch.float64)


def examined(exam: Examination, judge: str, base: Sequence[Tensor], arms: Mapping[str, Sequence[Tensor]]) -> Examined:
    """Tables of the answers of the baseline and of the arms."""
    before = rows(base, exam)
    count = {row: sum(q.skill == row for one in exam.asked for q in one.questions) for row in before}
    count[SCORE] = sum(len(one.questions) for one in exam.asked)
    asked = {row: [words(one.prompt) for one in exam.asked if _has(one, row)] for row in before}
    against = {}
    for label, found in arms.items():
        after = rows(found, exam)
        against[label] = {row: gains({row: before[row]}, {row: after[row]}, asked[row])[row] for row in before}
    return Examined(
        name=exam.name,
        rule=exam.rule,
        judge=judge,
        questions=count,
        prompts={row: len(values) for row, values in before.items()},
        baseline={row: means({row: values}, asked[row])[row] for row, values in before.items()},
        arms=against,
    )


def lines(found: Examined) -> Iterator[str]:
    """What a user reads."""
    width = max(map(len, found.baseline))
    yield f"{found.name}, rule {found.rule}, answered by {found.judge}:"
    for row, mean in found.baseline.items():
        yield f"  {row:<{width}}  {found.prompts[row]:>5} prompts {found.questions[row]:>6} questions  base {mean}"
    for label, table in found.arms.items():
        yield f"{label}:"
        for row, gain in table.items():
            change = gain.difference
            yield (
                f"  {row:<{width}}  {gain.before.mean:.4f} -> {gain.after.mean:.4f}  change {change.mean:+z.4f} "
                f"[{change.within('+z.4f')}]"
            )


def as_csv(found: Examined) -> str:
    """A row for each arm and row of the table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["arm", "row", "prompts", "questions", "before", "after", "difference", "low", "high"])
    for row, mean in found.baseline.items() if not found.arms else ():
        writer.writerow(["base", row, found.prompts[row], found.questions[row], mean.mean, "", "", "", ""])
    for label, table in found.arms.items():
        for row, gain in table.items():
            values = [
                gain.before.mean,
                gain.after.mean,
                gain.difference.mean,
                gain.difference.low,
                gain.difference.high,
            ]
            writer.writerow([label, row, found.prompts[row], found.questions[row], *values])
    return file.getvalue()
