"""Shared by all tests."""

from hypothesis import settings

# No test asserts times: hypothesis's own limit per example fails on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
