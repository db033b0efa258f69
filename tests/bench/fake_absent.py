"""A system whose package is not installed."""

from tests.bench import fake


class Absent(fake.Fake):
    """As the other, if it could be had."""

    name = "tests.bench.fake_absent"
    module = "no_such_package_anywhere"
