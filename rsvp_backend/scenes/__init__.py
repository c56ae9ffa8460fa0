"""Procedural scenes with exact masks and reasoning instructions: for tests, benchmarks, training and the demo."""

from rsvp_backend.scenes.layout import LEVELS, LevelName
from rsvp_backend.scenes.scene import EVALUATION_SEEDS_FROM, Question, Scene, make_scene

__all__ = ["EVALUATION_SEEDS_FROM", "LEVELS", "LevelName", "Question", "Scene", "make_scene"]
