"""From the command line to an exit code."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import httpx

from ..errors import InvalidArgumentError, ReftClientError
from ..retry import RetryPolicy
from ..sync_client import ReftClient
from .failure import describe
from .parser import build_parser
from .plugins import find_plugin
from .terminal import Terminal

__all__ = ["main"]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None, *, transport: httpx.BaseTransport | None = None) -> int:
    """Run one command and return its exit code; wrong options end in argparse's `SystemExit(2)`.

    Args:
        argv: None = the process's own.
        transport: replaces the network, for tests.
    """
    terminal = Terminal.standard()
    for stream in (terminal.stdout, terminal.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold what the locale can't show
            stream.reconfigure(errors="replace")
    try:
        plugin = find_plugin(argv)
        if plugin is not None:
            return plugin.run(terminal)
        args = build_parser().parse_args(argv)
        # A person waits at the prompt: a server that is down should be reported within a second.
        retry = RetryPolicy(max_retries=2)
        with ReftClient(args.url, timeout_s=args.timeout, retry=retry, transport=transport) as client:
            code: int = args.run(args, client, terminal)
        terminal.stdout.flush()
    except InvalidArgumentError as error:
        terminal.note(f"reft: {describe(error)}")
        return EXIT_USAGE
    except ReftClientError as error:
        terminal.note(f"reft: {describe(error)}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        terminal.note("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it somewhere to go.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, terminal.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # the disk is full, a file vanished: the server's troubles are typed above
        terminal.note(f"reft: {error.filename or 'a local file'}: {error.strerror or error}")
        return EXIT_ERROR
    return code
