"""Load on something that answers calls: closed (each client asks again when it has its answer) and open (calls arrive
by a schedule, whatever the answers do).

A closed loop hides stalls: while one lasts nobody asks, so that one call is slow and those that would have come
meanwhile are never counted. In the open loop each of them counts from the moment at which it was due.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ..types import Float64s
from .histogram import Histogram

Call: TypeAlias = Callable[[int], object]
Arrivals: TypeAlias = Literal["poisson", "even"]
SPIN_SECONDS = 3e-4  # a sleep may end later than asked by about this; the rest is waited for awake
SHARES = (50, 90, 95, 99, 99.9)
ATTEMPTS = 2
KEPT_UP = 0.95  # share of the arrivals per second that must be answered per second


class Clock(Protocol):
    """What time it is, and waiting."""

    def now(self) -> float:
        """Seconds since any fixed moment."""

    def wait_until(self, moment: float) -> None:
        """Return at `moment`, or at once if it is past."""


class WallClock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds of the performance counter."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Sleep, and spin for the last part, giving way to other threads."""
        while (left := moment - time.perf_counter()) > 0:
            time.sleep(max(left - SPIN_SECONDS, 0))


@dataclass(frozen=True, slots=True)
class Load:
    """What a load has measured.

    kind: "closed" or "open". rate: arrivals per second of the schedule; None for a closed loop. clients: threads that
    call. seconds: from the start to the last answer. latency: of each call from when it was due (open) or made (closed)
    until its answer. service: of each call from when it was made; the same in a closed loop.
    """

    kind: str
    rate: float | None
    clients: int
    seconds: float
    latency: Histogram
    service: Histogram

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return len(self.latency) / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: durations in milliseconds."""
        open_loop = self.kind == "open"
        return {
            "kind": self.kind, "rate": self.rate and round(self.rate, 1), "clients": self.clients,
            "calls": len(self.latency), "seconds": round(self.seconds, 4), "per_second": round(self.per_second, 1),
            **_milliseconds(self.latency), **({"service": _milliseconds(self.service)} if open_loop else {}),
        }  # fmt: skip


def _milliseconds(durations: Histogram) -> dict[str, float]:
    told = durations.percentiles_ms(*SHARES)
    return {**told, "max_ms": round(durations.greatest * 1e3, 4), "mean_ms": round(durations.mean * 1e3, 4)}


def arrivals(rate: float, count: int, kind: Arrivals = "poisson", seed: int = 0) -> Float64s:
    """When `count` calls are due at `rate` per second, in seconds from the start: shape (count,), ascending.

    poisson: independent callers: uniform moments, sorted, which is a Poisson process of known count. even: equal gaps.

    Raises:
        ValueError: for a rate that is not positive and finite, or another kind.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate {rate}: must be positive")
    if kind == "even":
        return np.arange(count) / rate
    if kind == "poisson":
        return np.sort(np.random.default_rng(seed).uniform(0, count / rate, count))
    raise ValueError(f"arrivals {kind!r}: must be 'poisson' or 'even'")


def closed_loop(call: Call, calls: int, clients: int = 1, clock: Clock | None = None) -> Load:
    """Make call(0) … call(calls - 1), each by the next of `clients` threads that is free.

    Raises:
        ValueError: if `calls` or `clients` is below 1.
        Exception: the first that a call has raised; no further call is made then.
    """
    return _run(_Calls(call, calls, clock or WallClock()), None, clients)


def open_loop(call: Call, due: Float64s, clients: int = 1, clock: Clock | None = None) -> Load:
    """Make call(i) when it is due, or as soon after as one of `clients` threads is free.

    Args:
        due: seconds from the start, ascending, as `arrivals` gives them.

    Raises:
        ValueError: if `due` is empty or `clients` below 1.
        Exception: the first that a call has raised; no further call is made then.
    """
    span = float(due[-1] - due[0]) if len(due) > 1 else 0.0
    rate = (len(due) - 1) / span if span > 0 else None
    return _run(_Calls(call, len(due), clock or WallClock(), due), rate, clients)


@dataclass(slots=True)
class _Calls:
    """The calls still to be made, shared by the clients.

    `lock` guards `taken`. Its holder is also the one who waits for the next call to be due: however many clients are
    idle, one of them at a time is awake.
    """

    call: Call
    total: int
    clock: Clock
    due: Float64s | None = None
    began: float = 0.0
    taken: int = 0
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int | None:
        """The number of the next call, once it is due; None if there is none."""
        with self.lock:
            number = self.taken
            if number >= self.total or self.error is not None:
                return None
            self.taken += 1
            if self.due is not None:
                self.clock.wait_until(self.began + self.due[number])
            return number

    def serve(self, latency: Histogram, service: Histogram) -> None:
        """Make calls until none is left."""
        waited, served = array("d"), array("d")
        try:
            while (number := self.next()) is not None:
                made = self.clock.now()
                self.call(number)
                done = self.clock.now()
                served.append(done - made)
                waited.append(done - (made if self.due is None else self.began + float(self.due[number])))
        except BaseException as error:  # noqa: BLE001 - raised again by _run, in the thread that asked
            self.error = self.error or error
        latency.record(np.frombuffer(waited))
        service.record(np.frombuffer(served))


def _run(calls: _Calls, rate: float | None, clients: int) -> Load:
    if calls.total < 1 or clients < 1:
        raise ValueError(f"{calls.total} calls by {clients} clients: both must be at least 1")
    parts = [(Histogram(), Histogram()) for _ in range(clients)]
    calls.began = calls.clock.now()
    if clients == 1:
        calls.serve(*parts[0])
    else:
        _in_threads(calls, parts)
    seconds = calls.clock.now() - calls.began
    if calls.error is not None:
        raise calls.error
    for latency, service in parts[1:]:
        parts[0][0].merge(latency)
        parts[0][1].merge(service)
    return Load("closed" if calls.due is None else "open", rate, clients, seconds, *parts[0])


def _in_threads(calls: _Calls, parts: list[tuple[Histogram, Histogram]]) -> None:
    threads = [threading.Thread(target=calls.serve, args=part, daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: nobody may go on calling what the caller is about to close
        calls.error = error
        for thread in threads:
            thread.join()
        raise


def highest_rate(
    offer: Callable[[float], Load], share: float, bound: float, start: float, *, precision: float = 0.05
) -> tuple[Load | None, list[Load]]:
    """The highest rate at which a percentile of the latency holds, found by doubling, halving and bisection.

    A rate fails if it failed twice: once may have been a hiccup of the machine. It also fails if answers fall behind
    arrivals, since then the percentile only tells how long the load lasted.

    Args:
        offer: runs an open loop at so many arrivals per second.
        share: the percentile, such as 99.
        bound: seconds that it may be at most.
        start: rate to try first.
        precision: stop when the rates that hold and fail are closer than this share of each other.

    Returns:
        The load at the highest rate that held, None if none did down to start / 1024; and every load, as tried.
    """
    tried: list[Load] = []

    def holds(rate: float) -> bool:
        for _ in range(ATTEMPTS):
            load = offer(rate)
            tried.append(load)
            kept_up = load.per_second >= KEPT_UP * (load.rate or rate)
            if kept_up and load.latency.percentile(share) <= bound:
                return True
        return False

    held, failed = 0.0, math.inf
    best: Load | None = None
    rate = start
    while failed > held * (1 + precision) and rate >= start / 1024:
        if holds(rate):
            held, best = rate, tried[-1]
        else:
            failed = rate
        rate = held * 2 if failed == math.inf else failed / 2 if not held else math.sqrt(held * failed)
    return best, tried
