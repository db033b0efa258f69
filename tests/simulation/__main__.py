"""Command line: `python -m tests.simulation --seconds 300`, or `--seed N` to replay a run."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter

from tests.simulation.run import Simulation


def main() -> int:
    """Run seeds one after another until the time is up. Tells of the first that fails, and how it is replayed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on with one seed after another")
    parser.add_argument("--seed", type=int, default=None, help="replay this one run")
    parser.add_argument("--first", type=int, default=None, help="the seed to begin with, if not one at random")
    parser.add_argument("--trace", action="store_true", help="print every step")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        simulation = Simulation(arguments.seed, traced=arguments.trace)
        print(f"trace {simulation.run()}: {_told(simulation.seen)}")
        return 0
    until = time.monotonic() + arguments.seconds
    seed = secrets.randbits(31) if arguments.first is None else arguments.first
    seen: Counter[str] = Counter()
    print(f"from seed {seed} on", flush=True)
    while time.monotonic() < until:
        simulation = Simulation(seed)
        try:
            simulation.run()
        except BaseException:
            print(f"seed {seed} fails: python -m tests.simulation --seed {seed} --trace", file=sys.stderr)
            raise
        seen += simulation.seen
        seen["runs"] += 1
        seed += 1
    print(_told(seen))
    return 0


def _told(seen: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(seen.items()))


if __name__ == "__main__":
    sys.exit(main())
