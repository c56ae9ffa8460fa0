"""Every error the package raises on purpose. Each message says what was seen, what was expected, what to change."""


class RsvpError(Exception):
    """Base of all errors of this package."""


class SettingsError(RsvpError):
    """A setting is unknown or has a value that is not allowed; stops the start."""


class ImageError(RsvpError):
    """An image is missing, refused, too large, or not an image."""


class InstructionError(RsvpError):
    """A task carries no usable instruction."""


class ReasonerError(RsvpError):
    """The reasoner could not be reached or did not answer in time."""


class AnswerError(ReasonerError):
    """The reasoner answered, but not with a valid answer, and the repair try failed as well."""

    def __init__(self, message: str, raw_texts: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.raw_texts = raw_texts


class SegmenterError(RsvpError):
    """The segmenter failed on a crop."""


class WeightsError(RsvpError):
    """A checkpoint is missing, damaged, of another model, or unsafe to load."""


class LabelConfigError(RsvpError):
    """The labeling config lacks something the backend needs."""


class RleError(RsvpError, ValueError):
    """A brush RLE is damaged or does not fit the image size."""


class LabelStudioError(RsvpError):
    """Label Studio refused a request or could not be reached."""


class LabelStudioAwayError(LabelStudioError):
    """It could not be reached, or had trouble of its own: the same request may work later."""


class DeadlineError(RsvpError):
    """The time given to a request is over."""
