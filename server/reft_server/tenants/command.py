"""What the commands at the machine of the store share: where its database is, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from reft_server.config import Settings, load_settings
from reft_server.errors import ReftError

from .directory import TenantDirectory

Run = Callable[[TenantDirectory, argparse.Namespace], None]


def add_command(commands: Any, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """A subcommand that works on the database of a store."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    add_store_options(parser)
    parser.set_defaults(run=run)
    return parser


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which store, for `settings_of`."""
    parser.add_argument("--store-dir", type=Path, metavar="DIR", help="the server's store (default: REFT_STORE_DIR)")
    parser.add_argument("--database-url", metavar="URL", help="the server's database (default: REFT_DATABASE_URL)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the server's settings file (default: REFT_CONFIG)")


def settings_of(options: argparse.Namespace) -> Settings:
    """The server's settings, as the options, the environment and the settings file say.

    Raises:
        ConfigurationError: see `load_settings`.
    """
    names = ("store_dir", "database_url", "blob_url", "config")
    given = {name: getattr(options, name, None) for name in names}
    return load_settings({name: value for name, value in given.items() if value is not None})


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the subcommand that `argv` names; 0 = done, 2 = it can't be, with a sentence on stderr."""
    options = parser.parse_args(argv)

    def run() -> None:
        settings = settings_of(options)
        with closing(TenantDirectory.of_store(settings.store_dir, None, settings.database_url_text)) as directory:
            directory.open()
            options.run(directory, options)

    return end_well(run)


def end_well(run: Callable[[], None]) -> int:
    """The exit status of a command: 0 = done, 2 = it can't be, with a sentence on stderr."""
    try:
        run()
    except ReftError as error:
        sys.stderr.write(f"reft-serve: {error.message}\n")
        return 2
    except BrokenPipeError:  # `... | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
