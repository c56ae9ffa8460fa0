"""Reasoning segmentation (RSVP) as an ML backend for Label Studio."""

__version__ = "0.1.0"
