"""Two commits, or two logs, figure by figure: what changed, and what is within the noise.

A figure is told from noise by two bounds, and has to pass both:

- the 95 % interval of its change, from a bootstrap of the repetitions: the runs of either side are drawn with
  replacement, the repetitions within each run too, and the medians compared. The interval must leave out "no change".
- the drift: how far the same figure of the systems that did not change (the same version on both sides) moved between
  the two sides, at most. The machine did that, so less than it says nothing.

With fewer than three repetitions on a side, or without an unchanged system and with fewer than three runs on a side,
a time is not judged: repetitions within one run do not see how the machine drifts. Sizes are not random: any difference
is a change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import InvalidArgumentError
from .curve import bracket, interpolate
from .runs import TARGETS, Entry, Line, Setting, by_curve, entries, number, read, repetitions_of, settings

Samples: TypeAlias = list[list[float]]  # the repetitions of each run
Pair: TypeAlias = tuple[list[Entry], list[Entry]]  # a system before and after, run by run
DRAWS = 2_000
LEVEL = 95
FEWEST = 3
SAME_RECALL = 0.001
OURS = "corenn"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure on both sides.

    before, after: medians; None if it was not measured, or never reached. ratio: after over before. low, high: the
    interval of the ratio; equal to it for what is not random, None with too few repetitions. drift: the greatest change
    of an unchanged system, as a factor of 1 or more; None without one. repetitions: of the side that has fewer.
    verdict: "better", "worse", "noise", "same", "too few" (repetitions or runs), or "missing".
    """

    setting: Setting
    label: str
    figure: str
    before: float | None
    after: float | None
    ratio: float | None
    low: float | None
    high: float | None
    drift: float | None
    repetitions: int
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "setting": str(self.setting)}


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure of a system: what it is called, whether more of it is better, its samples, and at which recall."""

    name: str
    more_is_better: bool
    random: bool
    take: Callable[[Sequence[Entry]], Samples]
    recall: float | None = None

    def samples(self, pair: Pair) -> tuple[Samples, Samples]:
        """Those of both sides; none where they would be of different recalls."""
        if self.recall is not None and not _alike(pair, self.recall):
            return [], []
        return self.take(pair[0]), self.take(pair[1])


def _alike(pair: Pair, recall: float) -> bool:
    """Whether all can be told at `recall`, or begin above it at the same recall."""
    lowest = [min(float(point["recall"]) for point in entry.points) for side in pair for entry in side]
    return max(lowest) <= recall or max(lowest) - min(lowest) <= SAME_RECALL


def between(before: str, after: str, logs: Sequence[Path], *, ours: Sequence[str] | None = None) -> list[Change]:
    """What changed from one side to the other, as `compare` tells; each is a log, or a commit to be found in `logs`.

    Raises:
        InvalidArgumentError: if one of them cannot be found, or if they have no measured system in common.
    """
    changes = compare(_side(before, logs), _side(after, logs), ours=ours)
    if not changes:
        raise InvalidArgumentError(
            f"{before} and {after} have no system in common that was measured on the same data and setting"
        )
    return changes


def _side(given: str, logs: Sequence[Path]) -> list[Line]:
    """The lines of a log, or of a commit in `logs`."""
    if Path(given).exists():
        return read([Path(given)])[0]
    if not logs:
        raise InvalidArgumentError(f"{given}: no such log; for a commit, name the log to look in with --log")
    every = read(logs)[0]
    found = of_commit(every, given)
    if not found:
        known = sorted({_short(str(line["commit"])) for line in every if line.get("commit")})
        raise InvalidArgumentError(
            f"{given}: no run of this commit; there are {', '.join(known) or 'none with a commit'}"
        )
    commits = sorted({str(line["commit"]) for line in found})
    if len(commits) > 1:
        raise InvalidArgumentError(f"{given}: several commits begin so: {', '.join(commits)}; give more of the one")
    return found


def _short(commit: str) -> str:
    return commit[:9] + commit[40:]


def of_commit(lines: Sequence[Line], commit: str) -> list[Line]:
    """The lines measured at a commit, given by how it begins; a + at its end means with changed sources."""
    wanted, changed = commit.removesuffix("+"), commit.endswith("+")
    return [
        line
        for line in lines
        if (told := str(line.get("commit") or "")).startswith(wanted) and told.endswith("+") == changed
    ]


def compare(before: Sequence[Line], after: Sequence[Line], *, ours: Sequence[str] | None = None) -> list[Change]:
    """Every figure of every system that both sides have under the same setting.

    ours: the systems to tell of; by default those whose version or commit can have changed them: CoreNN itself, and
    systems of another version. The others show the drift of the machine.
    """
    found: list[Change] = []
    first, second = settings(before), settings(after)
    for setting in (each for each in first if each in second):
        sides = [_by_label(lines[setting]) for lines in (first, second)]
        labels = [label for label in sides[0] if label in sides[1]]
        pairs = {label: (sides[0][label], sides[1][label]) for label in labels}
        subjects = [label for label in labels if _is_subject(pairs[label], ours)]
        controls = [pairs[label] for label in labels if _unchanged(pairs[label]) and label not in subjects]
        for figure in _figures([entry for pair in pairs.values() for side in pair for entry in side]):
            drift = _drift(figure, controls) if figure.random else None
            found += [_change(setting, label, figure, pairs[label], drift) for label in subjects]
    return found


def _by_label(lines: Sequence[Line]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries(lines):
        if entry.points:
            found.setdefault(entry.label, []).append(entry)
    return dict(sorted(found.items()))


def _is_subject(pair: Pair, ours: Sequence[str] | None) -> bool:
    entry = pair[1][-1]
    if ours is not None:
        return entry.label in ours or entry.system in ours
    return entry.system.startswith(OURS) or not _unchanged(pair)


def _unchanged(pair: Pair) -> bool:
    """Whether neither side can differ but by the machine: a system of the same known version that is not ours."""
    versions = {entry.version for side in pair for entry in side}
    return len(versions) == 1 and None not in versions and not pair[0][-1].system.startswith(OURS)


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(every: Sequence[Entry]) -> Iterator[_Figure]:
    targets = sorted({target for entry in every for target in entry.targets}) or list(TARGETS)
    for target in targets:
        yield _Figure(f"QPS at recall {target:g}", True, True, _taker(speed_at, target), target)
    for target in targets:
        yield _Figure(f"p99 ms at recall {target:g}", False, True, _taker(latency_at, target), target)
    yield _Figure("build seconds", False, True, _fact("build_seconds"))
    yield _Figure("index bytes", False, False, _fact("index_bytes"))
    yield _Figure("disk bytes", False, False, _fact("disk_bytes"))


def _taker(take: Callable[[Entry, float], list[float]], target: float) -> Callable[[Sequence[Entry]], Samples]:
    return lambda side: [values for entry in side if (values := take(entry, target))]


def _fact(name: str) -> Callable[[Sequence[Entry]], Samples]:
    return lambda side: [[value] for entry in side if (value := entry.number(name)) is not None]


def speed_at(entry: Entry, target: float) -> list[float]:
    """Queries per second at a recall in each repetition, on the best curve of each; empty if it was never reached."""
    near = [found for line in by_curve(entry.points) if (found := bracket(line, target))]
    rates = [[repetitions_of(spot.line) for spot in spots] for spots in near]
    repetitions = min((len(runs) for curve in rates for runs in curve), default=0)
    return [
        max(
            interpolate(spots, [runs[turn] for runs in curve], target) for spots, curve in zip(near, rates, strict=True)
        )
        for turn in range(repetitions)
    ]


def latency_at(entry: Entry, target: float) -> list[float]:
    """The 99th percentile of single calls at a recall, on the best curve: one value, or none."""
    found = []
    for line in by_curve(entry.points):
        spots = bracket(line, target)
        values = [number((spot.line.get("latency_ms") or {}).get("p99")) for spot in spots]
        told = [value for value in values if value is not None and value > 0]
        if spots and len(told) == len(spots):
            found.append(interpolate(spots, told, target))
    return [min(found)] if found else []


# --- judging ----------------------------------------------------------------------------------------------------------


def _change(setting: Setting, label: str, figure: _Figure, pair: Pair, drift: float | None) -> Change:
    samples = figure.samples(pair)
    before, after = (_median(side) if side else None for side in samples)
    repetitions = min(sum(map(len, side)) for side in samples)
    if before is None or after is None or before <= 0 or after <= 0:
        return Change(setting, label, figure.name, before, after, None, None, None, drift, repetitions, "missing")
    ratio = after / before
    if not figure.random:
        verdict = "same" if ratio == 1 else "worse" if (ratio > 1) != figure.more_is_better else "better"
        return Change(setting, label, figure.name, before, after, ratio, ratio, ratio, None, repetitions, verdict)
    if repetitions < FEWEST or (drift is None and min(map(len, samples)) < FEWEST):
        return Change(setting, label, figure.name, before, after, ratio, None, None, drift, repetitions, "too few")
    low, high = interval(*samples)
    real = (low > 1 or high < 1) and abs(math.log(ratio)) > math.log(drift or 1)
    verdict = "noise" if not real else "better" if (ratio > 1) == figure.more_is_better else "worse"
    return Change(setting, label, figure.name, before, after, ratio, low, high, drift, repetitions, verdict)


def _drift(figure: _Figure, controls: Sequence[Pair]) -> float | None:
    """The greatest change of a figure of a system that did not change, as a factor of 1 or more."""
    factors = []
    for pair in controls:
        before, after = figure.samples(pair)
        if before and after:
            factors.append(math.exp(abs(math.log(_median(after) / _median(before)))))
    return max(factors, default=None)


def _median(samples: Samples) -> float:
    return float(np.median([np.median(run) for run in samples]))


def interval(before: Samples, after: Samples, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of median(after) / median(before), by a bootstrap over runs and the repetitions within them."""
    rng = np.random.default_rng(seed)
    ratios = _drawn(after, rng) / _drawn(before, rng)
    low, high = np.percentile(ratios, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _drawn(samples: Samples, rng: np.random.Generator) -> np.typing.NDArray[np.float64]:
    """Medians of DRAWS samples drawn with replacement: first of the runs, then within each of those drawn."""
    medians = np.stack([
        np.median(rng.choice(np.asarray(run), (DRAWS, len(samples), len(run))), axis=2) for run in samples
    ])  # fmt: skip  # (runs, draws, place among the runs drawn)
    chosen = rng.integers(0, len(samples), (DRAWS, len(samples)))
    places = np.arange(len(samples))
    drawn = medians[chosen, np.arange(DRAWS)[:, None], places]
    return np.asarray(np.median(drawn, axis=1))
