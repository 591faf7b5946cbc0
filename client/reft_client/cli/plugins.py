"""Commands that other parts of the distribution bring: the entry points of the group `reft.commands`.

An entry point `NAME = module:function` becomes `reft NAME …`; the function takes the remaining arguments and returns an
exit code. It is loaded only when its command is run: the client imports no tensor library.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from .terminal import Terminal

__all__ = ["Plugin", "add_plugins", "find_plugin"]

_GROUP = "reft.commands"
_SUMMARIES: Mapping[str, str] = MappingProxyType(
    {
        "import": "turn another library's checkpoint into an intervention file",
        "export": "write an intervention file as a folder that pyreft loads",
    }
)
_EXIT_ERROR = 1
_EXIT_USAGE = 2


@dataclass(frozen=True)
class Plugin:
    """A command and its arguments, not loaded yet."""

    entry_point: EntryPoint
    arguments: tuple[str, ...]

    def run(self, terminal: Terminal) -> int:
        """Load the command and run it; where its packages are missing, say what to install."""
        try:
            function = self.entry_point.load()
        except ModuleNotFoundError as error:
            terminal.note(
                f"reft: `reft {self.entry_point.name}` needs {error.name}; run pip install 'reft-serve[train]'"
            )
            return _EXIT_ERROR
        code: int = function(list(self.arguments))
        return code


def find_plugin(argv: Sequence[str] | None) -> Plugin | None:
    """The plugin that the first argument names; its own arguments are not ours to parse."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    found = [entry for entry in _installed() if arguments and entry.name == arguments[0]]
    return Plugin(found[0], tuple(arguments[1:])) if found else None


def add_plugins(commands: Any) -> None:
    """List the plugins among `reft --help`'s commands."""
    for entry in _installed():
        summary = _SUMMARIES.get(entry.name, f"(from {entry.value.partition('.')[0]})")
        parser = commands.add_parser(entry.name, help=summary, add_help=False)
        parser.add_argument("arguments", nargs=argparse.REMAINDER)
        parser.set_defaults(run=_refuse, name=entry.name)


def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=_GROUP), key=lambda entry: entry.name)


def _refuse(args: argparse.Namespace, _: object, terminal: Terminal) -> int:
    """Reached when options stand before the command, which `find_plugin` does not look behind."""
    terminal.note(f"reft: `reft {args.name}` asks no server; write it without options before its name")
    return _EXIT_USAGE
