"""Errors a user meets. A docstring's first line is the sentence of its class; the message has the case."""

#: sysexits.h: the status of a service whose settings cannot be used; its unit is not started again for it.
EX_CONFIG = 78


class SemantikError(Exception):
    """Something the user or the operator can put right; shown as one line, exit status 1."""


class SettingsError(SemantikError):
    """A setting is missing or has a value that cannot be used."""


class BrokerUnavailable(SemantikError):
    """Redis cannot be reached; what is recorded in the database starts when it is back."""


class DatabaseUnavailable(SemantikError):
    """PostgreSQL cannot be reached; nothing was recorded."""


class NotFound(SemantikError):
    """The named job, collection or source does not exist."""


class Absent(NotFound):
    """There is nothing at the source, though it could be looked at: removed, or not mounted."""


class Refused(SemantikError):
    """The request contradicts what is recorded, for example a collection embedded with another model."""


class FenceLost(SemantikError):
    """Another claim holds the row now; this holder's work is dropped."""


class DocumentError(SemantikError):
    """One document cannot be read or parsed; it alone fails, with this reason."""


class ParserUnavailable(SemantikError):
    """No parser can be reached; no document is at fault."""


class DeviceFull(SemantikError):
    """The device has no memory for a single text now; the work is given back, no document is at fault."""


class GpuLost(SemantikError):
    """The GPU cannot be used any more: off its bus, taken out, or in need of a reset."""


class GpuSilent(SemantikError):
    """The driver answers with an error that says nothing of the GPU."""


class GpuTaken(SemantikError):
    """The GPU lets nobody compute now, or one process alone, which is another."""


class JobFailed(SemantikError):
    """The job ended without embedding its documents; what `AsyncResult(job_id).get()` raises."""
