"""Shared by all tests."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No test asserts times: hypothesis's own limit per example fails on a busy machine. The same examples every time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _settings_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a ``.env`` where the tests are started nor the shell's RSVP_* reach a test or a process of its."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("RSVP_")]:
            patch.delenv(name)
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A command of the command line sets up logging for its process; the next test's process is the same one."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
