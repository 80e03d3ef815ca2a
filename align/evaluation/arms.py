"""What is compared: the arms of an evaluation, as they are written on the command line.

base                     the model as it is
RUN@0.5                  a run's adapter (or an adapter's folder, file, Hub id) at strength 0.5; without @, 1
RUN@0.5+OTHER@0.5        two adapters, or more, in one network
RUN~OTHER                guided away from OTHER: behind ~ stands the unprompted branch (a negative, a weaker self, base)
best-of:8, reno:20       the base with a noise of its choice: the best of 8 by the rewards, or after 20 iterations
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path, PurePath

from align.errors import UserError
from align.policy.mix import Located, locate

BASE = "base"
BEST_OF, RENO = "best-of", "reno"
NOISES = {BEST_OF: "best of {}", RENO: "ReNO, {} iterations"}


@dataclass(frozen=True)
class Arm:
    """One way to draw the same prompts at the same seeds."""

    label: str
    adapters: Mapping[str, float] = field(default_factory=dict)
    """{the adapter's source: its weight}, by Located.adapter; none is the base."""
    negative: Mapping[str, float] | None = None
    """The same of guidance's unprompted branch, where it is another than the prompted one's."""
    noise: str | None = None
    """What chooses the noise: a key of NOISES."""
    count: int = 0
    """Of it: candidates, or iterations."""

    @property
    def slug(self) -> str:
        """A name for its folder, which no other label has: where letters are lost, a digest of all of them is added."""
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.label).strip("-.") or "arm"
        names = re.split(r" x [^ ]+(?: \+ |$)", self.label)
        if self.noise is not None or all(re.fullmatch(r"[a-z0-9_.-]*", name) and "-x-" not in name for name in names):
            return plain
        return f"{plain[:80]}-{hashlib.blake2b(self.label.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


@dataclass(frozen=True)
class Cast:
    """The arms of an evaluation, the adapters that they need, and the one that the others are held against."""

    baseline: Arm
    arms: list[Arm]
    adapters: dict[str, Located]


def cast(
    systems: Sequence[str],
    *,
    against: str = BASE,
    strengths: Sequence[float] = (),
    mix: Sequence[float] = (),
    branched: Callable[[Arm, dict[str, Located]], Arm] = lambda arm, found: arm,
) -> Cast:
    """The arms that `systems` name. strengths: each adapter at each of them; mix: two adapters at all pairs of these
    weights. An arm that is the baseline is left out, but not strength 0 of a sweep: it has to come out as the base.
    branched: gives an arm the unprompted branch that a recipe asks for, and may add an adapter to those that are found.
    """
    found: dict[str, Located] = {}
    arms = [_arm(text, found) for text in systems]
    baseline = _arm(against, found)
    if strengths and mix:
        raise UserError("--strengths and --mix are two different sweeps. Give one of them.")
    if strengths:
        arms = [swept for arm in arms for swept in _strengths(arm, strengths)]
    if mix:
        arms = _mixtures(arms, mix)
    arms, baseline = [branched(arm, found) for arm in arms], branched(baseline, found)
    names = _names(found)
    labelled = {arm.label: arm for arm in (_labelled(arm, names) for arm in arms)}
    baseline = _labelled(baseline, names)
    if not strengths:
        labelled.pop(baseline.label, None)
    used = {adapter for arm in (*labelled.values(), baseline) for adapter in (*arm.adapters, *(arm.negative or ()))}
    return Cast(baseline, list(labelled.values()), {a: place for a, place in found.items() if a in used})


def numbers(text: str | None, option: str) -> list[float]:
    """ "0,0.5,1" -> [0, 0.5, 1]."""
    try:
        values = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        values = []
    if text is not None and (not values or not all(map(math.isfinite, values))):
        raise UserError(f"{option} {text}: is no list of numbers. Write it as 0,0.25,0.5,1.")
    return list(dict.fromkeys(values))


def _arm(text: str, found: dict[str, Located]) -> Arm:
    if (sign := re.search(r"(?<=[^+~])~", text)) and not _there(text):
        prompted, other = (_arm(part, found) for part in (text[: sign.start()], text[sign.end() :]))
        if other.noise is not None:
            raise UserError(f"{text}: {other.noise} chooses noise, and is no adapter. Name one behind the ~.")
        return replace(prompted, negative=other.adapters)
    kind, _, count = text.partition(":")
    if text == BASE:
        return Arm("")
    if kind in NOISES and not Path(text).exists():
        if not count.isdigit() or int(count) < 1:
            raise UserError(f"{text}: how many? Write {kind}:8, for example.")
        return Arm("", noise=kind, count=int(count))
    weights: dict[str, float] = {}
    for part in _parts(text):
        source, weight = _weighted(part)
        place = locate(source)
        found[place.adapter] = place
        weights[place.adapter] = weights.get(place.adapter, 0.0) + weight
    return Arm("", weights)


def _parts(text: str) -> list[str]:
    """A mixture cut at its plus signs, but not at those within the names of folders that are there."""
    pieces = text.split("+")
    found: list[str] = []
    while pieces:
        longest = next((n for n in range(len(pieces), 1, -1) if _there("+".join(pieces[:n]))), 1)
        found.append("+".join(pieces[:longest]))
        pieces = pieces[longest:]
    return found


def _there(text: str) -> bool:
    """Whether a source is a file or folder here, with a strength behind it or without."""
    source, _, strength = text.rpartition("@")
    names = (text, "" if "+" in strength else source)  # a plus behind the strength begins the next adapter
    return any(Path(name).expanduser().exists() for name in names if name)


def _weighted(text: str) -> tuple[str, float]:
    source, sign, weight = text.rpartition("@")
    if not sign or Path(text).expanduser().exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f'{text}: "{weight}" is no strength. Write it as {source}@0.5.')
    return source, value


def _strengths(arm: Arm, strengths: Sequence[float]) -> list[Arm]:
    if not arm.adapters:
        return [arm]
    scaled = [{adapter: s * weight for adapter, weight in arm.adapters.items()} for s in strengths]
    return [replace(arm, adapters=adapters) for adapters in scaled]


def _mixtures(arms: Sequence[Arm], weights: Sequence[float]) -> list[Arm]:
    single = [next(iter(arm.adapters)) for arm in arms if len(arm.adapters) == 1]
    if len(single) != 2 or len(arms) != 2 or single[0] == single[1]:
        raise UserError(f"--mix takes two different adapters, and {len(set(single))} are given. Name two runs.")
    return [Arm("", dict(zip(single, pair, strict=True))) for pair in product(weights, repeat=2)]


def _names(found: Mapping[str, Located]) -> dict[str, str]:
    """{adapter: a name that no other has}: its run, behind as many folders as tell it from the others."""
    names: dict[str, str] = {}
    for name in {place.name for place in found.values()}:
        tails = {adapter: _tails(adapter, name) for adapter, place in found.items() if place.name == name}
        for above in range(max(map(len, tails.values()))):
            told = {adapter: own[min(above, len(own) - 1)] for adapter, own in tails.items()}
            if len(set(told.values())) == len(told):
                break
        else:
            told = {adapter: adapter for adapter in tails}
        names |= told
    return names


def _tails(adapter: str, name: str) -> list[str]:
    """ "a/b/run/adapter/file", "run" -> run, b/run, a/b/run."""
    parts = PurePath(adapter).parts
    if name not in parts:
        return [name]
    end = len(parts) - parts[::-1].index(name)
    return ["/".join(parts[start:end]) for start in range(end - 1, -1, -1)]


def _labelled(arm: Arm, names: Mapping[str, str]) -> Arm:
    if arm.noise is not None:
        label = NOISES[arm.noise].format(arm.count)
    else:
        label = _sum(arm.adapters, names)
    if arm.negative is not None:
        label += f" ~ {_sum(arm.negative, names)}"
    return replace(arm, label=label)


def _sum(adapters: Mapping[str, float], names: Mapping[str, str]) -> str:
    return " + ".join(f"{names[adapter]} x {weight:g}" for adapter, weight in adapters.items()) or BASE
