"""Logs to stderr, as text or as JSON, with the request's id and tenant, and without any content.

A failure is logged with its type and its stack. Its message is left out: it may quote what a client sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from .request_context import current_request

LogFormat = Literal["text", "json"]

_OWN_LOGGERS = ("reft_server", "reft_interventions")
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

logger = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """`time LEVEL event key=value ...`, and at the end the request's id and tenant, where one is being served."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in _fields(record).items())])
        # A file's name may hold a line end: nothing that is logged forges another record, or steers a terminal.
        return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        return describe_exception(ei[1])


class JsonFormatter(TextFormatter):
    """One JSON object per record: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `exception`, and fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def describe_exception(error: BaseException | None) -> str:
    """The stacks and types of an exception and of what caused it, without their messages; an `OSError` with its errno.

    The latest comes first.
    """
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        stack = "".join(traceback.format_tb(error.__traceback__))
        number = f" errno={error.errno}" if isinstance(error, OSError) else ""
        parts.append(f"{stack}{type(error).__module__}.{type(error).__qualname__}{number}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by:\n".join(parts)


def handle_loop_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: asyncio's own would print the exception with what it quotes."""
    error = context.get("exception")
    logger.error("loop_exception reason=%s", context["message"], exc_info=error)


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Send our events of `level` and above to stderr, and the libraries' from WARNING on.

    At `debug` too: what libraries print when debugged may be content. Called by the command line, and again when the
    settings are reloaded.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)
    # A library's deprecation is for its developers, not for someone who starts a server.
    logging.getLogger("py.warnings").setLevel(logging.WARNING if level == "debug" else logging.ERROR)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """`extra={"fields": ...}` of the call, and the request that is being served."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    request = current_request()
    if request is not None:
        fields |= {"request_id": request.request_id, "tenant": request.tenant}
    return fields
