"""Logging of the server process: one line per event on stderr, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_OWN_LOGGERS = ("reft_server", "reft_interventions")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str, *, as_json: bool = False) -> None:
    """Send our events of `level` and above to stderr, and the libraries' from WARNING on.

    At `debug` the libraries speak too. Called once, by the command line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    is_debug = level == "debug"
    logging.basicConfig(level=logging.DEBUG if is_debug else logging.WARNING, handlers=[handler], force=True)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)
    # A library's deprecation is for its developers, not for someone who starts a server.
    logging.getLogger("py.warnings").setLevel(logging.WARNING if is_debug else logging.ERROR)
