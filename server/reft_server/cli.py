"""The command `reft-serve`: settings, model, engine, registry, app, and an HTTP server around them.

What takes seconds to import, torch above all, is imported where it is used: `--help`, `keys` and `audit` need none.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from reft_server.config import SettingField, Settings, load_settings, setting_fields
from reft_server.errors import ConfigurationError, ReftError
from reft_server.logging_setup import configure_logging
from reft_server.reload import ReadSettings, SettingsReload
from reft_server.storage.cli import main as store_command
from reft_server.tenants import TenantDirectory
from reft_server.tenants.audit import SERVER_PROCESS
from reft_server.tenants.audit_cli import main as audit_command
from reft_server.tenants.cli import main as keys_command

logger = logging.getLogger(__name__)

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends it. 0 = clean end; 2 = it can't start, with a sentence on stderr."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["keys"]:
        return keys_command(arguments[1:])
    if arguments[:1] == ["audit"]:
        return audit_command(arguments[1:])
    if arguments[:1] == ["store"]:
        return store_command(arguments[1:])
    options = vars(_parser().parse_args(arguments))
    is_fetch_only = options.pop("fetch_only")
    try:
        overrides = _overrides(options)
        settings = load_settings(overrides)
        configure_logging(settings.log_level, settings.log_format)
        return _fetch_only(settings) if is_fetch_only else _serve(settings, partial(load_settings, overrides))
    except ReftError as error:
        sys.stderr.write(f"reft-serve: {error.message}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reft-serve",
        usage="%(prog)s [--SETTING VALUE ...] [--fetch-only] [--version]\n"
        "       %(prog)s keys --help\n       %(prog)s audit --help\n       %(prog)s store --help",
        description="Serve one frozen base model; every request may name its own ReFT intervention.",
        epilog="Each setting is an environment variable too; the flag wins.",
        allow_abbrev=False,  # a flag that a later version adds must not change what a script's abbreviation means
    )
    parser.add_argument("--version", action="version", version=f"reft-serve {version('reft-serve')}")
    parser.add_argument("--fetch-only", action="store_true", help="fetch the model, print its folder and exit")
    for field in setting_fields():
        is_switch = field.info.annotation is bool
        parser.add_argument(
            field.flag,
            dest=".".join(field.path),
            default=argparse.SUPPRESS,
            metavar="|".join(field.choices) or field.path[-1].upper(),
            nargs="?" if is_switch else None,
            const="true" if is_switch else None,
            help=_help_text(field),
        )
    return parser


def _help_text(field: SettingField) -> str:
    note = " Can be reloaded." if field.is_reloadable else ""
    return f"{field.info.description} Default: {field.default_text}.{note} [{field.variable}]".replace("%", "%%")


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in options.items():
        *groups, name = dotted.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
    return nested


def _fetch_only(settings: Settings) -> int:
    from reft_server.base_model import locate_model

    sys.stdout.write(f"{locate_model(settings).path}\n")
    return 0


def _serve(settings: Settings, read: ReadSettings) -> int:
    if settings.config is not None:
        signal.signal(signal.SIGHUP, _ignore)  # until the server takes it: it would end a start that is under way
    # Bound before the model is loaded: a port in use shows at once, and nobody takes it meanwhile.
    with _bind(settings) as listener, closing(_directory(settings)) as directory:
        directory.open()

        from reft_server.http_server import run
        from reft_server.serving import build_app, check_exposure

        open_to = check_exposure(listener, settings, directory)
        reload = SettingsReload(settings, read, directory)
        return run(build_app(settings, directory, open_to=open_to, reload=reload), settings, listener, reload)


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """SIG_IGN would be handed down to training processes."""


def _directory(settings: Settings) -> TenantDirectory:
    limits = settings.tenant.to_tenant_limits()
    directory = TenantDirectory.of_store(settings.store_dir, limits, settings.database_url_text)
    directory.actor = SERVER_PROCESS
    directory.audit_retention_s = settings.audit_retention_s
    return directory


def _bind(settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet: clients are refused until the server is ready.

    Raises:
        ConfigurationError: the address is not ours, or the port is taken.
    """
    try:
        # With SO_REUSEADDR two sockets that do not listen yet may share a port, and the second server would learn of
        # the first when its model is loaded. Without it the connections of a server that just ended hold the port.
        try:
            return _bound(settings, can_reuse=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return _bound(settings, can_reuse=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
        raise ConfigurationError(
            f"Can't listen on {settings.host} port {settings.port}: {reason}. Choose another with --port or --host.",
            param="port",
        ) from error


def _bound(settings: Settings, *, can_reuse: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, can_reuse)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


if __name__ == "__main__":
    sys.exit(main())
