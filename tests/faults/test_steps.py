"""Every call that changes the disk fails once, and is once the last of a process, in every operation.

Rules out an acknowledged write that is lost, one that is half there, a failed one that comes back, an error that is
not ours or kills reads, and a handle that does not write again when the disk does.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from corenn import CoreNN
from corenn.errors import CoreNNError, DiskFullError, ReadOnlyError, StorageError
from tests.faults.conftest import Bases
from tests.faults.faulty import Faults, FaultyFiles, injected
from tests.faults.operations import (
    DIM,
    OPERATIONS,
    Operation,
    State,
    differs,
    photographed,
    put,
    reopened,
    some,
)

MOST_STEPS = 400


def fail_at(folder: Path, base: State, operation: Operation, work: Path, faults: Faults) -> bool:
    """Run an operation whose step `faults.at` fails. Returns whether it came that far."""
    path = shutil.copytree(folder / operation.base, work)
    files = FaultyFiles(faults)
    after = dict(base)
    operation.apply(after)
    with injected(files):
        expected, at = base, faults.at
        faults.at = 0
        db = CoreNN.open(path)
        faults.names.clear()
        faults.at = at
        try:
            operation.run(db)
            expected = after
        except CoreNNError as error:
            assert isinstance(error, (DiskFullError, StorageError, ReadOnlyError)), repr(error)
            assert faults.hit, f"failed by itself: {error!r}"
            assert "injected" in str(error) or "No space" in str(error) or "Input/output" in str(error), error
        if not faults.hit:
            faults.heal()
            db.close()
            shutil.rmtree(path)
            return False
        if operation is not OPERATIONS["close"]:
            go_on(db, expected, faults)
            expected = {**expected, **grown()}
    assert reopened(path, expected, expected) is expected
    return True


def grown() -> State:
    state: State = {}
    put(state, *some(range(200, 204)))
    return state


def go_on(db: CoreNN, expected: State, faults: Faults) -> None:
    """Reads are right at once; writes are refused while the disk is broken, and served when it is not."""
    assert (wrong := differs(db, expected)) is None, wrong
    if faults.lasting:
        for _ in range(2):
            with pytest.raises(CoreNNError):
                db.insert(*some(range(200, 204)))
            assert (wrong := differs(db, expected)) is None, wrong
    faults.heal()
    db.insert(*some(range(200, 204)))
    assert (wrong := differs(db, {**expected, **grown()})) is None, wrong
    db.checkpoint()
    db.close()


KINDS = [  # error, late, lasting
    (errno.EIO, False, False), (errno.ENOSPC, False, True), (errno.EIO, True, True), (errno.ENOSPC, True, False),
]  # fmt: skip


def sweep(case: str, attempt: Callable[[Faults], bool], kinds: list[tuple[int, bool, bool]]) -> int:
    """Let each step of an attempt fail, in each of several ways, until it needs no more. Returns how many there are."""
    for at in range(1, MOST_STEPS):
        for error, late, lasting in kinds if len(kinds) < len(KINDS) else [kinds[at % len(kinds)]]:
            faults = Faults(at, error, late=late, lasting=lasting)
            try:
                if not attempt(faults):
                    return at - 1
            except BaseException as problem:
                name = faults.names[at - 1] if len(faults.names) >= at else "?"
                problem.add_note(f"{case}, step {at}: {name}, errno {error}, late={late}, lasting={lasting}")
                raise
    raise AssertionError("it never ends")


@pytest.mark.few(4)
@pytest.mark.parametrize("durability", ["os", "sync"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_step_may_fail(bases: Bases, place: Path, name: str, durability: str) -> None:
    folder, states = bases[durability]
    operation = OPERATIONS[name]

    def attempt(faults: Faults) -> bool:
        return fail_at(folder, states[operation.base], operation, place / "db", faults)

    steps = sweep(f"{name}, {durability}", attempt, KINDS)
    assert (steps > 0) != (name == "verify")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("durability", ["os", "sync"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_step_may_fail_in_any_way(
    bases: Bases, place: Path, name: str, durability: str, kind: tuple[int, bool, bool]
) -> None:
    folder, states = bases[durability]
    operation = OPERATIONS[name]
    sweep(
        f"{name}, {durability}",
        lambda faults: fail_at(folder, states[operation.base], operation, place / "db", faults),
        [kind],
    )


# --- making and opening -----------------------------------------------------------------------------------------------

MAKE = {
    "create": lambda path: CoreNN.create(path, dim=DIM, metric="l2"),
    "build": lambda path: CoreNN.build(path, *some(range(60)), dim=DIM, metric="l2"),
}


@pytest.mark.parametrize("name", MAKE)
def test_what_cannot_be_made_is_not_there_or_whole(place: Path, name: str) -> None:
    made: State = {}
    if name == "build":
        put(made, *some(range(60)))
    path = place / "db"

    def attempt(faults: Faults) -> bool:
        done = False
        with injected(FaultyFiles(faults)):
            try:
                db = MAKE[name](path)
                faults.heal()
                db.close()
                done = True
            except CoreNNError as error:
                assert isinstance(error, (DiskFullError, StorageError)), repr(error)
        faults.heal()
        if path.exists():
            assert reopened(path, made, made) is made
        else:
            assert not done
        left = [item for item in place.iterdir() if not faults.lasting]
        assert not left, f"left behind: {left}"
        for item in place.iterdir():
            shutil.rmtree(item)
        return faults.hit

    assert sweep(name, attempt, KINDS) > 20


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", ["rw", "rescue"])
def test_what_cannot_be_opened_now_can_be_later(bases: Bases, place: Path, mode: str) -> None:
    """Among that what a killed process has left, which opening recovers."""
    folder, states = bases["os"]

    def attempt(faults: Faults) -> bool:
        path = shutil.copytree(folder / "dirty", place / "db")
        with injected(FaultyFiles(faults)):
            try:
                CoreNN.open(path, mode=mode).close()
                assert not faults.hit or faults.soft
            except CoreNNError as error:
                assert isinstance(error, (DiskFullError, StorageError)), repr(error)
                assert faults.hit
        reopened(path, states["dirty"], states["dirty"])
        return faults.hit

    assert sweep(mode, attempt, KINDS) > 8


# --- the last step of a process ---------------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("durability", ["os", "sync"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_step_may_be_the_last(bases: Bases, place: Path, name: str, durability: str) -> None:
    """What is on the disk before and after each step, as a killed process would leave it, is opened."""
    folder, states = bases[durability]
    operation = OPERATIONS[name]
    path = shutil.copytree(folder / operation.base, place / "db")
    images: list[tuple[str, Path]] = []

    def look(step: str) -> None:
        images.append((step, photographed(path, place / f"image-{len(images)}")))

    faults = Faults()
    with injected(FaultyFiles(faults)):
        db = CoreNN.open(path)
        faults.watch = look
        operation.run(db)
        look("at the end")
        faults.watch = None
        db.close()
    before, after = states[operation.base], dict(states[operation.base])
    operation.apply(after)
    held = False
    for step, image in images:
        try:
            found = reopened(image, before, after)
        except BaseException as problem:
            problem.add_note(f"{name}, {durability}, killed {step}")
            raise
        held = held or found is after
        assert found is (after if held else before), f"killed {step}: came and went again"
    assert held
