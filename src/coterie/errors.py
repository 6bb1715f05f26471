"""The errors of Coterie, one tree. Nothing else is raised on purpose at a public door.

    CoterieError                    everything below; `.code` is stable and meant for programs
    ├── CheckpointError             a file of a checkpoint is damaged, inconsistent or not what it says
    ├── ConfigError                 config.json or a sibling says something absurd or incomplete
    ├── UnsupportedError            well formed, but not something that Coterie does
    ├── ArgumentError (ValueError)  an argument of a public function: dtype, shape, range
    │   └── RequestError            an argument of a generation: prompt, sampling, stop
    ├── BackendUnavailableError     a back end asked for by name is not there
    ├── CapacityError               memory, context length or time budget is exceeded
    └── NumericError                NaN or infinity where numbers must be finite

Every message says what was found, what was expected, where, and what to do. `MemoryShortage` is a warning, no error: a
model runs, and slowly.
"""


class CoterieError(Exception):
    """Base of all errors. `code` names the cause in a form that does not change between releases."""

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code


class CheckpointError(CoterieError):
    """A file of a checkpoint cannot be trusted: it is damaged, inconsistent, or something else than it claims."""

    default_code = "checkpoint"


class ConfigError(CoterieError):
    """A configuration file is incomplete, contradictory or absurd."""

    default_code = "config"


class UnsupportedError(CoterieError):
    """The input is well formed, but outside of what Coterie does; the message says what it does instead."""

    default_code = "unsupported"


class ArgumentError(CoterieError, ValueError):
    """An argument of a public function has a wrong dtype, shape, kind or value."""

    default_code = "argument"


class RequestError(ArgumentError):
    """An argument of a generation (prompt, sampling, stop strings) is not usable."""

    default_code = "request"


class BackendUnavailableError(CoterieError):
    """A back end was asked for by name and is not there; the message says how to get it."""

    default_code = "backend_unavailable"


class CapacityError(CoterieError):
    """Memory, context length or a time budget would be exceeded."""

    default_code = "capacity"


class NumericError(CoterieError):
    """A value that must be finite is NaN or infinite."""

    default_code = "numeric"


class MemoryShortage(UserWarning):
    """A model's weights do not fit into the memory that is available: it runs, and reads them from the disk."""
