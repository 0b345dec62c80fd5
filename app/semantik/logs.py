"""One line per event in the journal: what happened, then key=value."""

from __future__ import annotations

import logging
import sys

#: The journal stamps time, host and unit, so the line does not.
FORMAT = "%(levelname)s %(name)s: %(message)s"


def configure() -> None:
    """Send this process's log to stderr, one line per event."""
    logging.basicConfig(level=logging.INFO, format=FORMAT, stream=sys.stderr)


def event(
    logger: logging.Logger, what: str, *, level: int = logging.INFO, traceback: bool = False, **values: object
) -> None:
    """Log `what` with the values that are not None; below it the traceback of what is being handled."""
    if logger.isEnabledFor(level):
        words = [f"{key}={_word(value)}" for key, value in values.items() if value is not None]
        logger.log(level, "%s", " ".join([what, *words]), exc_info=traceback)


def _word(value: object) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    if text and not any(c.isspace() or c in '"=' for c in text):
        return text
    return '"' + " ".join(text.split()).replace('"', "'") + '"'
