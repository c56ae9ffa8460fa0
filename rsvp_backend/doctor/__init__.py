"""``rsvp-backend doctor``: what stands between this backend, Label Studio, a project, and the models; and the cure."""

from rsvp_backend.doctor.examine import Subject, examine
from rsvp_backend.doctor.finding import Finding
from rsvp_backend.doctor.fix import repair

__all__ = ["Finding", "Subject", "examine", "repair"]
