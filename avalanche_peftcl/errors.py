"""Errors of the package: one base class; each concrete error is also the matching builtin."""

__all__ = [
    "AmbiguousComponentError",
    "BackboneWarning",
    "BudgetError",
    "CheckpointError",
    "CheckpointWarning",
    "ConfigError",
    "ConfigWarning",
    "DataError",
    "DivergenceWarning",
    "ExportError",
    "NotFiniteError",
    "PEFTCLError",
    "PluginLoadWarning",
    "PrecisionWarning",
    "ProtocolError",
    "RecordError",
    "ResourceError",
    "UnknownComponentError",
]


class PEFTCLError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(PEFTCLError, ValueError):
    """A setting that cannot be used: unknown key or option, wrong type, out of range."""


class ConfigWarning(UserWarning):
    """A setting that does nothing or harm; the text says which and the way out."""


class UnknownComponentError(PEFTCLError, LookupError):
    """A component name that no loaded package offers."""


class AmbiguousComponentError(PEFTCLError, LookupError):
    """A component name that several packages offer."""


class DataError(PEFTCLError, ValueError):
    """Images or splits that cannot be used: missing folder, unreadable image, uneven split."""


class CheckpointError(PEFTCLError, RuntimeError):
    """Weights or a checkpoint that cannot be had or do not fit."""


class ExportError(PEFTCLError, RuntimeError):
    """A trained network that cannot be written in the form that was asked for."""


class ProtocolError(PEFTCLError, ValueError):
    """Runs whose numbers do not belong side by side, because they differ in what was measured."""


class RecordError(PEFTCLError, ValueError):
    """A run record that cannot be read; the text says why."""


class NotFiniteError(PEFTCLError, FloatingPointError):
    """Weights, losses, features or outputs that are not finite numbers: there is no result."""


class BudgetError(PEFTCLError, RuntimeError):
    """A run that keeps more than its budget allows."""


class ResourceError(PEFTCLError, RuntimeError):
    """The machine has too little of something: memory, open files, processes, threads."""


class PluginLoadWarning(UserWarning):
    """A plugin package was left out; the text says which, its version and why."""


class CheckpointWarning(UserWarning):
    """A checkpoint was not written or could not be read; the text says which and why."""


class DivergenceWarning(UserWarning):
    """The loss is still a number, and far above where it began; the text says what to change."""


class BackboneWarning(UserWarning):
    """A backbone is had in another way than was written; the text says which and how."""


class PrecisionWarning(UserWarning):
    """A precision that the device emulates; the text says what to choose."""
