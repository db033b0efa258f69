"""The process that is killed: `python -m tests.crash.child FOLDER`.

Opens or creates FOLDER/db by FOLDER/plan.json, catches up with the logs, and writes until it is killed or finds
FOLDER/stop. Each operation is logged before it is begun and after it is acknowledged.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

from corenn import CoreNN
from tests.crash.workload import Log, Operation, Plan, State, apply, operation, perform, replay, vectors


def write(db: CoreNN, plan: Plan, folder: Path, thread: int) -> None:
    """Write the operations of one thread, one after the other."""
    state, number, unknown = replay(folder, plan, thread)
    assert unknown is None, f"operation {unknown} was not resolved"
    log = Log(folder, thread)
    while not (folder / "stop").exists():
        task = operation(plan, thread, number, state)
        log.write("I", number)
        perform(db, plan, task)
        apply(state, task)
        log.write("A", number, len(task.keys))
        if number % 7 == 0:
            see(db, plan, task, state)
        number += 1
    log.close()


def see(db: CoreNN, plan: Plan, task: Operation, state: State) -> None:
    """What was acknowledged is seen by the thread that wrote it."""
    for key, record in zip(task.keys, db.get(list(task.keys)), strict=True):
        assert (record is not None) == (key in state), f"{key!r} after {task.kind} {task.number}"
    if task.kind in ("insert", "upsert"):
        row = vectors(plan, task.thread, task.number, len(task.keys))[0]
        assert task.keys[0] in db.query(row, k=10**6, exact=True).keys, f"{task.keys[0]!r} is not found"


def guarded(db: CoreNN, plan: Plan, folder: Path, thread: int) -> None:
    """An error in any thread ends the process, loudly."""
    try:
        write(db, plan, folder, thread)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)


def main(folder: Path) -> None:
    """Open or create the database and write."""
    plan = Plan.load(folder)
    db = CoreNN.open(folder / "db") if (folder / "created").exists() else plan.create(folder / "db")
    (folder / "created").touch()
    writers = [threading.Thread(target=guarded, args=(db, plan, folder, thread)) for thread in range(plan.threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    db.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
