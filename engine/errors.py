"""The errors users see. Each message says what was got, what was wanted and what to do."""

from __future__ import annotations


class KinemaError(Exception):
    """Base of every error that kinema raises on purpose; the CLI prints it as one line and exits with 1."""


class RequestError(KinemaError, ValueError):
    """A request asks for something that this model or machine cannot do."""


class CheckpointError(KinemaError, ValueError):
    """A model folder is incomplete, damaged, unsafe or not of a known family."""


class UnsupportedError(KinemaError, ValueError):
    """A forced backend, precision or device cannot run here."""


class OutputError(KinemaError, OSError):
    """A result could not be written; no partial file remains."""


class Interrupted(KinemaError):
    """A callback or a signal stopped the run."""


class KinemaWarning(UserWarning):
    """Something was understood otherwise than it was said; the CLI prints it as one line and goes on."""
