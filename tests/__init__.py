"""The test suite; a package so that `python -m tests.crash.harness` and the tests import the same oracle."""
