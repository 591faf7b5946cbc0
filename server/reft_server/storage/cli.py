"""`reft-serve store ...`: what is done to a whole store, at its machine and with no server running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from reft_server.config import Settings
from reft_server.errors import ConfigurationError
from reft_server.tenants import TenantDirectory
from reft_server.tenants.command import add_store_options, end_well, settings_of

if TYPE_CHECKING:
    from reft_interventions.store import InterventionStore

_COPY_EXAMPLES = """\
examples:
  reft-serve store copy --store-dir /srv/reft --to-database-url postgresql://reft@db.example/reft
  reft-serve store copy --config old.toml --to-database-url postgresql://reft@db.example/reft --to-blob-url s3://sets/prod
  reft-serve store copy --config old.toml --to-store-dir /srv/back-in-a-folder

A password in a flag shows in `ps`: keep it in PGPASSWORD or ~/.pgpass.
"""


def main(argv: Sequence[str]) -> int:
    """Run one command; 0 = done, 2 = it can't be, with a sentence on stderr."""
    options = _parser().parse_args(argv)
    return end_well(lambda: _copy(options))


def _copy(options: argparse.Namespace) -> None:
    from .copying import copy_everything  # imports torch, to read files

    source = settings_of(options)
    target = source.model_copy(
        update={
            "store_dir": options.to_store_dir or source.store_dir,
            "database_url": None if options.to_database_url is None else SecretStr(options.to_database_url),
            "blob_url": options.to_blob_url,
        }
    )
    if target == source:
        raise ConfigurationError("Say where to copy it: --to-store-dir, --to-database-url.", param="to_store_dir")
    with ExitStack() as stack:
        report = copy_everything(_open(source, stack), _open(target, stack))
    sys.stderr.write(f"copied: {report.num_versions} versions, {report.num_files} files, and the tenants' database\n")
    left = source.fine_tuning_folder
    if left != target.fine_tuning_folder and left.is_dir():
        sys.stderr.write(f"not copied: files and jobs of fine-tuning; copy {left} to {target.fine_tuning_folder}\n")


def _open(settings: Settings, stack: ExitStack) -> tuple[InterventionStore, TenantDirectory]:
    from .opening import open_store

    store = stack.enter_context(open_store(settings))
    directory = TenantDirectory.of_store(settings.store_dir, None, settings.database_url_text)
    stack.enter_context(closing(directory))
    directory.open()
    return store, directory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reft-serve store", description="Work on a whole store.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "copy a store, its tenants and its audit log to another folder, database or bucket"
    copy = commands.add_parser(
        "copy",
        help=summary,
        description=f"{summary.capitalize()}. The new place must be empty. Stop the servers first.",
        epilog=_COPY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store_options(copy)
    copy.add_argument("--blob-url", metavar="URL", help="the server's bucket (default: REFT_BLOB_URL)")
    to = copy.add_argument_group("the new place")
    to.add_argument("--to-store-dir", type=Path, metavar="DIR", help="its folder (default: the same)")
    to.add_argument("--to-database-url", metavar="URL", help="its database (default: none, all is in the folder)")
    to.add_argument("--to-blob-url", metavar="URL", help="its bucket (default: none, files are in the folder)")
    return parser
