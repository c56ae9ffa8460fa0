"""Shared by all tests."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No test asserts times: hypothesis's own limit per example fails on a busy machine. The same examples every time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A command of the command line sets up logging for its process; the next test's process is the same one."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
