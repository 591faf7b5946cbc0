"""Commands that come as entry points."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from reft_client.cli import plugins
from tests.unit.client.fakes import Run, Server

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = PROJECT["entry-points"]["reft.commands"]


def greet(arguments: list[str]) -> int:
    """A command for the tests."""
    sys.stdout.write(" ".join(arguments))
    return 3


def install(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    entries = [EntryPoint(name=name, value=value, group="reft.commands") for name, value in targets.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "reft.commands" else [])


def test_plugin_gets_its_arguments_and_gives_the_exit_code(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "greetings", sys.modules[__name__])
    install(monkeypatch, greet="greetings:greet")
    assert run("greet", "--loud", "-x", "you") == (3, "--loud -x you", "")
    assert server.requests == []


def test_plugin_without_its_packages_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, greet="no_such_module_here:greet")
    code, out, err = run("greet", "you")
    assert (code, out) == (1, "")
    assert "`reft greet` needs no_such_module_here; run pip install 'reft-serve[train]'" in err


def test_help_lists_plugins_without_loading_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, greet="no_such_module_here:greet", **{"import": "also_missing:main"})
    code, out, _ = run("--help")
    assert code == 0
    assert "greet" in out
    assert "turn another library's checkpoint into an intervention file" in out


def test_options_before_a_plugin_are_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, greet="no_such_module_here:greet")
    code, _, err = run("--timeout", "3", "greet", "you")
    assert code == 2
    assert "without options before its name" in err


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_declared_plugin_loads_and_prints_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = EntryPoint(name=name, value=DECLARED[name], group="reft.commands").load()
    with pytest.raises(SystemExit, match="0"):
        function(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: reft {name}")


def test_client_lists_commands_without_a_tensor_library() -> None:
    code = """import sys
from reft_client.cli.parser import build_parser
build_parser()
sys.exit('torch' in sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
