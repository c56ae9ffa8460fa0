"""Shared by all tests."""

from hypothesis import settings

# No test asserts times: hypothesis's own limit per example fails on a busy machine. The same examples every time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
