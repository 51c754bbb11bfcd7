"""Errors that a user can fix: each names the field that is wrong and the fix.

SafetyError
+-- ConfigError          a setting is wrong
+-- PromptError          a prompt is refused (too long, empty)
+-- ImageError           an image cannot be read
+-- ArtifactFormatError  a file is not of the form it should have
|   +-- SchemaError      a parquet file has other columns than those declared
+-- EndpointError        a model behind an endpoint refuses, or does not answer
+-- EmptyDatasetError    filtering left no row
+-- TrainingHealthError  a run does not learn, or diverges
"""

from __future__ import annotations

from enum import StrEnum


class SafetyError(Exception):
    """An error with a known cause; ``field`` names the wrong setting and ``fix`` the remedy."""

    def __init__(self, message: str, *, field: str, fix: str) -> None:
        """Compose "field: message. Fix: fix"."""
        super().__init__(f"{field}: {message}. Fix: {fix}")
        self.message, self.field, self.fix = message, field, fix

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the parts, so that the error keeps them across processes."""
        return _rebuild, (type(self), self.message, self.field, self.fix)


def _rebuild(kind: type[SafetyError], message: str, field: str, fix: str) -> SafetyError:
    return kind(message, field=field, fix=fix)


class ConfigError(SafetyError):
    """A setting is wrong."""


class PromptError(SafetyError):
    """A prompt is refused."""


class ImageFault(StrEnum):
    """The ways in which an image can be unusable."""

    EMPTY = "image_empty"
    UNKNOWN_FORMAT = "image_unknown_format"
    TOO_LARGE = "image_too_large"
    """More bytes than an image of the most pixels could need, or more pixels."""
    TOO_DEEP = "image_more_than_8_bits"
    PRINT_COLOURS = "image_cmyk"
    CORRUPT = "image_corrupt"
    OTHER = "image_unfit"
    """A fault that is not one of the file."""


class ImageError(SafetyError):
    """An image cannot be read, for the reason ``fault``."""

    def __init__(self, message: str, *, field: str, fix: str, fault: ImageFault = ImageFault.OTHER) -> None:
        """Compose the message; ``fault`` is for counting."""
        super().__init__(message, field=field, fix=fix)
        self.fault = fault

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the parts, the fault among them."""
        return _rebuild_image, (self.message, self.field, self.fix, self.fault)


def _rebuild_image(message: str, field: str, fix: str, fault: ImageFault) -> ImageError:
    return ImageError(message, field=field, fix=fix, fault=fault)


class EndpointError(SafetyError):
    """A model behind an endpoint refuses a request, cannot be reached, or gives no usable answer."""


class ArtifactFormatError(SafetyError):
    """A file is not of the form it should have, or not one that this project loads."""


class SchemaError(ArtifactFormatError):
    """A parquet file has other columns than those declared: it is of another writer, and its values are not read."""


class EmptyDatasetError(SafetyError):
    """Filtering left no row to work with."""


class TrainingHealthError(SafetyError):
    """A training run does not learn, or diverges."""
