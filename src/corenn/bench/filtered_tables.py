"""Filtered searches of several systems as Markdown and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from .filtered_data import PLAIN, Asked
from .filtered_race import TOO_LATE, Answered, Filtering

OURS = "corenn"
GOAL, SLOWEST, RARE = 1.5, 4.0, 0.001


@dataclass(frozen=True, slots=True)
class Results:
    """What was found on one data set."""

    asked: Asked
    systems: Sequence[Filtering]
    answers: Sequence[Answered]
    target: float

    def cells(self) -> Iterator[tuple[Answered | None, list[Answered]]]:
        """For each cell what this system did, None where it was not asked, and what the others did."""
        for cell in self.asked.cells:
            here = [each for each in self.answers if each.cell is cell]
            ours = next((each for each in here if each.label == OURS), None)
            yield ours, [each for each in here if each is not ours]

    def reached(self, each: Answered) -> bool:
        """Whether it has the recall that is asked for."""
        return not each.error and each.judged is not None and each.judged.recall >= self.target

    def rate(self, each: Answered, *, beforehand: bool) -> float:
        """Queries per second. beforehand: without the making of sets, as where one filter serves all queries."""
        return each.qps if beforehand or each.cell.common else each.qps_making

    def best(self, others: Sequence[Answered], *, beforehand: bool) -> tuple[str, float] | None:
        """The fastest of others that reach the recall, and its rate."""
        rates = [(each.label, self.rate(each, beforehand=beforehand)) for each in others if self.reached(each)]
        return max(rates, key=lambda pair: pair[1], default=None)

    @property
    def plain(self) -> float:
        """Our speed without a filter; NaN where it is not known."""
        return next(
            (each.qps for each in self.answers if each.label == OURS and each.cell.share == PLAIN), float("nan")
        )


def markdown(results: Results) -> str:
    """Everything about one data set."""
    about, systems = results.asked.subject.about, results.systems
    lines = [f"## {about['name']}: {about['rows']:,} × {about['dim']}, {about['metric']}", ""]
    lines += ["| system | version | build, s | restricted by |", "|---|---|---|---|"]
    for each in systems:
        seconds = each.facts.get("build_seconds")
        by = "a set of rows" if each.spec.system.ready_made else "a filter"
        built = "–" if seconds is None else f"{seconds:.1f}"
        lines.append(f"| {each.spec.label} | {each.facts.get('version') or '–'} | {built} | {by} |")
    lines += ["", *_beside(results), "", *_all(results), *_reasons(results), *_summary(results)]
    return "\n".join(lines)


def _beside(results: Results) -> Iterator[str]:
    """Ours against the best other, cell by cell."""
    columns = (
        "filter", "share", "matches", "corenn, QPS", "recall", "results", "plan", "against unfiltered", "best other",
        "×", "with sets made beforehand", "×",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for ours, others in results.cells():
        if ours is None or ours.judged is None:
            continue
        cell, judged = ours.cell, ours.judged
        slower = f"{results.plain / ours.qps:.2f} × slower" if ours.qps and not isnan(results.plain) else "–"
        beside = [_against(ours, results.best(others, beforehand=which)) for which in (False, True)]
        yield (
            f"| {cell.kind} | {cell.share} | {judged.matches:,.0f} | {_speed(ours.qps)} | {judged.recall:.3f} |"
            f" {judged.returned:g} of {judged.wanted:g} | {', '.join(ours.plans)} | {slower} | {' | '.join(beside)} |"
        )


def _against(ours: Answered, best: tuple[str, float] | None) -> str:
    return "none | –" if best is None else f"{best[0]} {_speed(best[1])} | {ours.qps / best[1]:.2f}"


def _speed(qps: float) -> str:
    return "–" if isnan(qps) else f"{qps:,.0f}" if qps >= 10 else f"{qps:.2g}"


def _all(results: Results) -> Iterator[str]:
    """Every system, kind by kind."""
    for kind in dict.fromkeys(cell.kind for cell in results.asked.cells):
        cells = [cell for cell in results.asked.cells if cell.kind == kind]
        yield f"| {kind}, QPS | {' | '.join(cell.share for cell in cells)} |"
        yield "|---|" + "---|" * len(cells)
        for system in results.systems:
            found = {id(each.cell): each for each in results.answers if each.label == system.spec.label}
            yield f"| {system.spec.label} | {' | '.join(_cell(results, found.get(id(cell))) for cell in cells)} |"
        yield ""


def _cell(results: Results, each: Answered | None) -> str:
    """Speed, if the recall is enough; else the best recall in brackets; and how many results where these are few."""
    if each is None or each.judged is None:
        return "–" if each is None or each.error != TOO_LATE else "no time"
    judged = each.judged
    if each.error:
        return "failed"
    told = _speed(each.qps) if results.reached(each) else f"({judged.recall:.2f} at {_speed(each.qps)})"
    few = f", {judged.returned:.3g} of {judged.wanted:.3g}" if judged.short else ""
    return f"{told}{few}{', wrong rows' if judged.strangers else ''}"


def _reasons(results: Results) -> Iterator[str]:
    """Why systems have no figures."""
    for system in results.systems:
        own = [each.error for each in results.answers if each.label == system.spec.label and each.error]
        for reason in dict.fromkeys([*system.errors, *own]):
            yield f"- {system.spec.label}: {reason}" + (f" ({own.count(reason)} cells)" if reason in own else "")
    yield ""


def summary(results: Results) -> dict[str, Any]:
    """The goals: least recall, fewest results, slowest against unfiltered, and cells that others win or come near."""
    ours = [each for each in results.answers if each.label == OURS and each.judged and not each.error]
    filtered = [each for each in ours if each.cell.share != PLAIN]
    if not filtered:
        return {}
    slowest = min(filtered, key=lambda each: each.qps)
    judged = [each.judged for each in filtered if each.judged]
    behind = []
    for each, others in results.cells():
        best = results.best(others, beforehand=False)
        if best is None or each not in filtered or each.matches < RARE * results.asked.subject.about["rows"]:
            continue
        if each.qps < GOAL * best[1]:
            behind.append(f"{each.cell.kind} {each.cell.share}: {each.qps / best[1]:.2f} × {best[0]}")
    return {
        "least_recall": min(each.recall for each in judged),
        "queries_with_too_few": sum(each.short > 0 for each in judged),
        "slowest": f"{slowest.cell.kind} {slowest.cell.share}",
        "slower_than_unfiltered": None if isnan(results.plain) else results.plain / slowest.qps,
        "below_goal": behind,
    }


def _summary(results: Results) -> Iterator[str]:
    told = summary(results)
    if not told:
        return
    slower = told["slower_than_unfiltered"]
    yield (
        f"Least recall {told['least_recall']:.3f}; cells with fewer results than min(k, matches): "
        f"{told['queries_with_too_few']}. Slowest: {told['slowest']}"
        + (f", {slower:.2f} times slower than unfiltered (goal: ≤ {SLOWEST:g})." if slower else ".")
    )
    behind = told["below_goal"]
    yield f"From 0.1 % on, below {GOAL:g} × the best other in {len(behind)} cells{': ' if behind else '.'}" + "; ".join(
        behind
    )


def plain(results: Results) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return {
        "dataset": results.asked.subject.about,
        "systems": [
            {"label": each.spec.label, "notes": each.notes, "errors": each.errors, "facts": each.facts,
             "ready_made": each.spec.system.ready_made} for each in results.systems
        ],
        "answers": [
            {"system": each.label, "kind": each.cell.kind, "share": each.cell.share, "queries": each.queries,
             "params": each.params, "judged": each.judged and asdict(each.judged), "reached": results.reached(each),
             "qps": None if isnan(each.qps) else each.qps, "qps_runs": each.qps_runs,
             "making": each.making, "plans": each.plans,
             "error": each.error or None} for each in results.answers
        ],
        "summary": summary(results),
    }  # fmt: skip
