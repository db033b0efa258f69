"""Markdown tables of a log: speed at recalls, building, size and latency, what failed, and under what circumstances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .palette import own
from .runs import Entry, Line, Setting, number

if TYPE_CHECKING:
    from .compare import Change

MB = 1e6
NONE = "–"
VERDICTS = {
    "better": "better", "worse": "worse", "noise": "noise", "same": "the same",
    "too few": "too few runs to tell", "missing": "not on both sides",
}  # fmt: skip


def section(setting: Setting, entries: Sequence[Entry], images: Sequence[str] = ()) -> str:
    """All there is to say about the systems of one setting, as Markdown below a heading of the third rank.

    images: paths of plots, as they are to stand in the page.
    """
    measured = [entry for entry in entries if entry.points or entry.targets]
    parts = [f"### {setting}", circumstances(setting, entries)]
    if measured:
        parts += [speed(measured, setting.k), ahead(measured), building(measured), latency(measured)]
    failed = failures(entries)
    if failed:
        parts.append(failed)
    parts += [f"![{_alt(image)}]({image})" for image in images if image.endswith(".svg")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _alt(image: str) -> str:
    return image.rpartition("/")[2].removesuffix(".svg").replace("-", " ")


# --- tables -----------------------------------------------------------------------------------------------------------


def speed(entries: Sequence[Entry], k: int) -> str:
    """Queries per second at each recall target, fastest at the middle one first; the best of each column bold.

    In brackets what the worst repetitions give. ≥: the lowest setting was already above the target. max: the highest
    recall there was.
    """
    targets = recalls(entries)
    if not targets:
        return ""
    middle = targets[len(targets) // 2]
    ordered = sorted(entries, key=lambda entry: (_qps(entry, middle), _qps(entry, targets[0])), reverse=True)
    best = {target: max(_qps(entry, target) for entry in entries) for target in targets}
    rows = [
        [_name(entry), entry.version or NONE, *(_speed(entry, target, best[target]) for target in targets),
         _spread(entry), _setting_at(entry, middle)]
        for entry in ordered
    ]  # fmt: skip
    heads = [f"QPS at recall@{k} {target:g}" for target in targets]
    return _table(["system", "version", *heads, "spread", f"at {middle:g}"], rows, left=(0, 1, len(targets) + 3))


def ahead(entries: Sequence[Entry]) -> str:
    """CoreNN's speed over that of the fastest other system at each target.

    Only the other systems of the same run count, and a speed above a target counts as one at it, for both sides.
    """
    rows = []
    targets = recalls(entries)
    for entry in (entry for entry in entries if own(entry.system)):
        others = [other for other in entries if other.run == entry.run and not own(other.system)]
        if others and any(_qps(entry, target) for target in targets):
            rows.append([_name(entry), *(_ahead(entry, others, target) for target in targets)])
    return _table(["beside the best other", *(f"at {target:g}" for target in targets)], rows, left=(0,)) if rows else ""


def _ahead(entry: Entry, others: Sequence[Entry], target: float) -> str:
    best = max(others, key=lambda other: _qps(other, target))
    mine, theirs = _qps(entry, target), _qps(best, target)
    if not mine or not theirs:
        return NONE
    return f"{mine / theirs:.2f} × {best.label}"


def building(entries: Sequence[Entry]) -> str:
    """Time and rate of the build, sizes, and opening; quickest build first."""
    told = [entry for entry in entries if any(entry.number(name) for name in ("build_seconds", "index_bytes"))]
    if not told:
        return ""
    opening = any(entry.number("open_seconds") is not None for entry in told)
    rows = []
    for entry in sorted(told, key=lambda entry: entry.number("build_seconds") or float("inf")):
        seconds = entry.number("build_seconds")
        rate = entry.number("build_rows_per_second")
        cells = [_name(entry), _figure(seconds), _figure(rate), _mb(entry.number("index_bytes")),
                 _mb(entry.number("disk_bytes")), _mb(_rss(entry, "peak")), _mb(_rss(entry, "steady"))]  # fmt: skip
        rows.append([*cells, *([_opening(entry)] if opening else [])])
    heads = ["system", "build s", "rows/s", "index MB", "disk MB", "peak RSS MB", "steady RSS MB"]
    return _table([*heads, *(["open + first query ms"] if opening else [])], rows, left=(0,))


def latency(entries: Sequence[Entry]) -> str:
    """Median and 99th percentile of one query per call, at each recall target."""
    targets = recalls(entries)
    told = [entry for entry in entries if any(_latency(entry, target, "p50") is not None for target in targets)]
    if not told:
        return ""
    middle = targets[len(targets) // 2]
    ordered = sorted(told, key=lambda entry: _latency(entry, middle, "p50") or float("inf"))
    rows = [[_name(entry), *(_both(entry, target) for target in targets)] for entry in ordered]
    return _table(["system", *(f"p50 / p99 ms at {target:g}" for target in targets)], rows, left=(0,))


def failures(entries: Sequence[Entry]) -> str:
    """What could not be measured, and why."""
    rows = [
        [entry.label, str(line.get("reason") or NONE), str(line.get("stage") or NONE), _cell(line.get("message"))]
        for entry in entries
        for line in entry.failures
    ]
    rows += [
        [entry.label, "no point", NONE, "no line of it has both a recall and a speed"]
        for entry in entries
        if not entry.points and not entry.targets and not entry.failures
    ]
    return _table(["not measured", "why", "when", "message"], rows, left=(0, 1, 2, 3)) if rows else ""


def comparison(changes: Sequence[Change]) -> str:
    """What changed between two sides, and what is noise: a table for each setting, below headings of the third rank."""
    heads = ["system", "figure", "before", "after", "change", "95 % interval", "drift", "verdict"]
    parts = []
    for setting in dict.fromkeys(change.setting for change in changes):
        rows = [
            [_cell(change.label), change.figure, *change_cells(change), VERDICTS[change.verdict]]
            for change in changes
            if change.setting == setting and (change.before is not None or change.after is not None)
        ]
        parts += [f"### {setting}", _table(heads, rows, left=(0, 1, 7))]
    return "\n\n".join(parts) + "\n"


def change_cells(change: Change) -> tuple[str, ...]:
    """Before, after, change, interval and drift."""
    interval = NONE
    if change.low is not None and change.high is not None and change.low != change.high:
        interval = f"{_percent(change.low)} to {_percent(change.high)}"
    drift = NONE if change.drift is None else f"± {(change.drift - 1):.1%}"
    return _figure(change.before), _figure(change.after), _percent(change.ratio), interval, drift


def _percent(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio - 1:+.1%}"


def recalls(entries: Sequence[Entry]) -> list[float]:
    """The targets of all, ascending."""
    return sorted({target for entry in entries for target in entry.targets})


# --- circumstances ----------------------------------------------------------------------------------------------------


def circumstances(setting: Setting, entries: Sequence[Entry]) -> str:
    """On what, with what, when and how the figures were taken, in a paragraph; what differs between runs is listed."""
    facts = [entry.facts for entry in entries]
    sentences = [_data(setting, facts), _method(setting, facts), _machine(facts), _software(facts)]
    runs = len({entry.run for entry in entries})
    if runs > 1:
        sentences.append(f"**From {runs} runs: only systems of the same run were measured side by side.**")
    if any((fact.get("config") or {}).get("quick") for fact in facts):
        sentences.append("**A quick run: it shows that everything works, not how fast it is.**")
    return " ".join(sentence for sentence in sentences if sentence)


def _data(setting: Setting, facts: Sequence[Line]) -> str:
    rows = number(_first(facts, "dataset", "rows"))
    of = f" of {rows:,.0f}" if rows and rows > setting.n else ""
    queries = number(_first(facts, "config", "queries")) or number(_first(facts, "dataset", "queries"))
    asked = f", up to {queries:,.0f} queries" if queries else ""
    truth = _first(facts, "dataset", "truth")
    how = {"file": ", true neighbours from the file", "computed": ", true neighbours computed"}.get(str(truth), "")
    metric = f", {setting.metric}" if setting.metric else ""
    return (
        f"{setting.dataset or 'Unknown data'}: {setting.n:,}{of} rows of {setting.dim} dimensions{metric}{asked}{how}."
    )


def _method(setting: Setting, facts: Sequence[Line]) -> str:
    times = number(_first(facts, "config", "repetitions"))
    turns = f"; {times:.0f} repetitions in turns, the best counts" if times else ""
    return (
        f"k = {setting.k}, searched on {_threads(setting.threads)}, built on {_threads(setting.build_threads)}{turns}."
    )


def _machine(facts: Sequence[Line]) -> str:
    cpus = _all(facts, "machine", "cpu")
    if not cpus:
        return ""
    cores, memory = number(_first(facts, "machine", "cores")), number(_first(facts, "machine", "memory_bytes"))
    details = [
        f"{cores:.0f} cores" if cores else "", f"{memory / 1e9:.0f} GB" if memory else "",
        f"Linux {kernel}" if (kernel := _first(facts, "machine", "kernel")) else "",
        f"huge pages: {pages}" if (pages := _first(facts, "machine", "huge_pages")) else "",
    ]  # fmt: skip
    return f"{' and '.join(cpus)}, {', '.join(detail for detail in details if detail)}."


def _software(facts: Sequence[Line]) -> str:
    packages = ("python", "numpy", "numba")
    told = [f"{name} {version}" for name in packages if (version := _first(facts, "versions", name))]
    commits = [commit[:9] + commit[40:] for commit in _all(facts, "commit")]
    days = sorted({str(fact["time"])[:10] for fact in facts if fact.get("time")})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else ""
    parts = [f"Commit {' and '.join(commits)}" if commits else "", when, ", ".join(told)]
    return f"{'; '.join(part for part in parts if part)}." if any(parts) else ""


def _first(facts: Iterable[Line], *path: str) -> Any:
    return next(iter(_values(facts, *path)), None)


def _all(facts: Iterable[Line], *path: str) -> list[str]:
    return list(dict.fromkeys(str(value) for value in _values(facts, *path)))


def _values(facts: Iterable[Line], *path: str) -> Iterator[Any]:
    for fact in facts:
        value: Any = fact
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value not in (None, ""):
            yield value


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}" if count else "an unknown number of threads"


# --- cells ------------------------------------------------------------------------------------------------------------


def _name(entry: Entry) -> str:
    return f"**{entry.label}**" if own(entry.system) else entry.label


def _qps(entry: Entry, target: float) -> float:
    return number(entry.targets.get(target, {}).get("qps")) or 0.0


def _speed(entry: Entry, target: float, best: float) -> str:
    line = entry.targets.get(target)
    if line is None:
        return NONE
    qps, recall = number(line.get("qps")), number(line.get("recall"))
    if qps is None:
        return f"max {recall:.3f}" if recall is not None else NONE
    low = number(line.get("qps_low"))
    text = f"{'≥ ' if line.get('at_least') else ''}{_figure(qps)}"
    text = f"**{text}**" if qps == best else text
    return f"{text} ({_figure(low)})" if low is not None else text


def _spread(entry: Entry) -> str:
    spreads = sorted(spread for point in entry.points if (spread := number(point.get("qps_spread"))) is not None)
    return f"{spreads[len(spreads) // 2]:.0%}" if spreads else NONE


def _setting_at(entry: Entry, target: float) -> str:
    between = entry.targets.get(target, {}).get("between") or []
    names = dict.fromkeys(name for params in between for name in params)
    return _cell(", ".join(f"{name} {_span([params.get(name) for params in between])}" for name in names))


def _span(values: Sequence[Any]) -> str:
    return "–".join(str(value) for value in dict.fromkeys(values) if value is not None)


def _rss(entry: Entry, name: str) -> float | None:
    return number((entry.facts.get("rss") or {}).get(name))


def _opening(entry: Entry) -> str:
    opened, first = entry.number("open_seconds"), entry.number("first_query_seconds")
    return NONE if opened is None or first is None else f"{_figure(opened * 1e3)} + {_figure(first * 1e3)}"


def _latency(entry: Entry, target: float, name: str) -> float | None:
    return number((entry.targets.get(target, {}).get("latency_ms") or {}).get(name))


def _both(entry: Entry, target: float) -> str:
    p50, p99 = (_latency(entry, target, name) for name in ("p50", "p99"))
    return NONE if p50 is None or p99 is None else f"{_figure(p50)} / {_figure(p99)}"


def _mb(size: float | None) -> str:
    return NONE if size is None else _figure(size / MB)


def _figure(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(text: Any) -> str:
    """One line without what Markdown would take for the border of a cell."""
    return " ".join(str(text or "").split()).replace("|", "\\|") or NONE


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    rule = ["---" if at in left else "---:" for at in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
