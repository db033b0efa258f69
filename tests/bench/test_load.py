"""Closed and open loops on a clock of our own, and on the real one with several clients.

Rules out a stall that only the call it hits has to show for, calls made early, twice or not at all, an error that is
swallowed, and a search for the highest rate that stops beside it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.bench.load import Load, WallClock, arrivals, closed_loop, highest_rate, open_loop


class FakeClock:
    """Time that only passes by waiting and by work."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


def worker(clock: FakeClock, seconds: Callable[[int], float]) -> Callable[[int], None]:
    """Something whose call(i) takes seconds(i) on `clock`."""

    def call(number: int) -> None:
        clock.time += seconds(number)

    return call


def stalled(number: int) -> float:
    """A millisecond; one call takes a second."""
    return 1.0 if number == 500 else 0.001


def test_a_stall_is_in_the_tail_of_the_open_loop_and_not_of_the_closed_one() -> None:
    clock = FakeClock()
    closed = closed_loop(worker(clock, stalled), 1_000, clock=clock)
    clock = FakeClock()
    open_ = open_loop(worker(clock, stalled), arrivals(500, 1_000, "even"), clock=clock)
    assert closed.latency.percentile(99) == pytest.approx(0.001, rel=0.01)
    assert open_.latency.percentile(99) > 0.9  # a second of arrivals at 500 a second is half of all calls
    assert open_.latency.percentile(75) > 0.4
    assert open_.service.percentile(99) == pytest.approx(0.001, rel=0.01)
    assert closed.latency.greatest == pytest.approx(1.0) and open_.latency.greatest == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(1e-6, 3)), min_size=1, max_size=30))
def test_the_open_loop_is_a_queue_of_one_server(calls: list[tuple[float, float]]) -> None:
    """Lindley's recursion: a call begins when it is due and the one before it has ended."""
    due = np.cumsum([gap for gap, _ in calls])
    clock = FakeClock()
    load = open_loop(worker(clock, lambda number: calls[number][1]), due, clock=clock)
    free, waits = 0.0, []
    for at, (_, takes) in zip(due, calls, strict=True):
        free = max(free, float(at)) + takes
        waits.append(free - float(at))
    assert load.latency.greatest == pytest.approx(max(waits), abs=1e-9)
    assert load.latency.mean == pytest.approx(np.mean(waits), abs=1e-9)
    assert load.seconds == pytest.approx(free) and len(load.latency) == len(calls)


def test_arrivals() -> None:
    assert arrivals(4, 4, "even").tolist() == [0, 0.25, 0.5, 0.75]
    due = arrivals(100, 20_000)
    assert (np.diff(due) >= 0).all() and due[-1] <= 200
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(0.01, rel=0.01)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential gaps have it
    assert np.array_equal(due, arrivals(100, 20_000)) and not np.array_equal(due, arrivals(100, 20_000, seed=1))
    for rate in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be positive"):
            arrivals(rate, 10)
    with pytest.raises(ValueError, match="'poisson' or 'even'"):
        arrivals(1, 10, "uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize("clients", [1, 3])
def test_every_call_is_made_once_and_never_early(clients: int) -> None:
    made: Counter[int] = Counter()
    moments: dict[int, float] = {}
    lock = threading.Lock()

    def call(number: int) -> None:
        with lock:
            made[number] += 1
            moments[number] = time.perf_counter()

    closed = closed_loop(call, 200, clients)
    assert made == Counter(range(200)) and len(closed.latency) == 200 and closed.clients == clients
    made.clear()
    due = arrivals(2_000, 100)
    began = time.perf_counter()
    load = open_loop(call, due, clients)
    assert made == Counter(range(100)) and len(load.latency) == len(load.service) == 100
    assert all(moments[number] >= began + due[number] for number in range(100))
    assert load.seconds >= due[-1]


def test_clients_work_at_the_same_time() -> None:
    """Each call waits for the other one: a loop that made them in turn would never end."""
    barrier = threading.Barrier(2, timeout=30)
    load = closed_loop(lambda _: barrier.wait(), 10, 2)
    assert len(load.latency) == 10
    open_loop(lambda _: barrier.wait(), arrivals(1_000, 10, "even"), 2)


@pytest.mark.parametrize("clients", [1, 4])
def test_an_error_ends_the_load_and_is_raised(clients: int) -> None:
    made: list[int] = []

    def call(number: int) -> None:
        made.append(number)
        if number == 5:
            raise ZeroDivisionError("fifth")

    for run in (lambda: closed_loop(call, 10_000, clients), lambda: open_loop(call, np.zeros(10_000), clients)):
        made.clear()
        with pytest.raises(ZeroDivisionError, match="fifth"):
            run()
        assert len(made) < 10_000


def test_no_calls_and_no_clients_are_refused() -> None:
    for calls, clients in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            closed_loop(lambda _: None, calls, clients)
    with pytest.raises(ValueError, match="both must be at least 1"):
        open_loop(lambda _: None, np.array([]))


def test_a_load_as_json() -> None:
    clock = FakeClock()
    told = open_loop(worker(clock, lambda _: 0.002), arrivals(100, 50, "even"), clock=clock).as_dict()
    assert (told["kind"], told["rate"], told["clients"], told["calls"]) == ("open", 100, 1, 50)
    assert told["p50_ms"] == told["max_ms"] == told["service"]["p99_ms"] == pytest.approx(2, rel=0.01)
    clock = FakeClock()
    closed = closed_loop(worker(clock, lambda _: 0.002), 50, clock=clock).as_dict()
    assert closed["rate"] is None and "service" not in closed and closed["per_second"] == pytest.approx(500, abs=0.1)


def test_the_wall_clock_waits_and_does_not_wait_for_the_past() -> None:
    clock = WallClock()
    moment = clock.now() + 0.003
    clock.wait_until(moment)
    assert clock.now() >= moment
    clock.wait_until(moment - 100)


# --- the highest rate -------------------------------------------------------------------------------------------------


def queue(takes: float, hiccups: set[int] | None = None) -> tuple[Callable[[float], Load], list[float]]:
    """Offers of even arrivals to one server; those numbered in `hiccups` are delayed. And the rates offered."""
    rates: list[float] = []

    def offer(rate: float) -> Load:
        delay = 0.5 if len(rates) in (hiccups or set()) else 0.0
        rates.append(rate)
        clock = FakeClock()
        call = worker(clock, lambda number: takes + (delay if number == 0 else 0.0))
        return open_loop(call, arrivals(rate, 400, "even"), clock=clock)

    return offer, rates


@pytest.mark.parametrize("start", [1.0, 90.0, 20_000.0])
def test_the_highest_rate_is_that_of_the_server(start: float) -> None:
    offer, rates = queue(0.01)
    best, tried = highest_rate(offer, 99, 0.015, start, precision=0.02)
    assert best is not None and 97 <= best.rate <= 101  # type: ignore[operator]
    assert len(tried) == len(rates) and best in tried


def test_a_hiccup_is_tried_again() -> None:
    offer, rates = queue(0.01, hiccups={0, 3})
    best, _ = highest_rate(offer, 99, 0.015, 10, precision=0.02)
    assert best is not None and best.rate > 95  # type: ignore[operator]
    assert rates[0] == rates[1]


def test_falling_behind_is_not_holding() -> None:
    """400 calls of 10 ms all at once are over in 4 s: within a bound of 5 s, at any rate."""
    best, tried = highest_rate(queue(0.01)[0], 99, 5.0, 10)
    assert best is not None and best.rate < 110  # type: ignore[operator]
    assert len(tried) < 40


def test_no_rate_holds_what_a_single_call_exceeds() -> None:
    best, tried = highest_rate(queue(0.01)[0], 99, 0.005, 10)
    assert best is None and min(load.rate or 0 for load in tried) < 0.02
