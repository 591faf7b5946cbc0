"""`reft-train`: JSON lines in, an intervention file out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from ..errors import ReftError
from .cli_options import build_parser
from .events import EventLog


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and save a set; 0 on success, 1 with one line on stderr when it can't be done."""
    parsed = build_parser().parse_args(arguments)
    events = EventLog(parsed.events)
    try:
        from .command import run  # transformers takes seconds to import: a wrong option is told before

        run(parsed, Console(highlight=False), events)
    except ReftError as error:
        events.write("failed", code=error.code, message=error.message, param=error.param)
        Console(stderr=True, highlight=False).print(f"reft-train: {error.message}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
