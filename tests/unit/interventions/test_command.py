"""The commands where their packages are there, and where the base install alone is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reft_interventions import command
from reft_server import command as server_command


@pytest.mark.parametrize("name", ["reft-serve", "reft-train"])
def test_command_runs_with_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    main = {"reft-serve": server_command.main, "reft-train": command.main}[name]
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}")


def test_command_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "needy_command.py").write_text("import no_such_module_here.inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert command.run_command("reft-brew", "needy_command", extra="tea") == 1
    assert capsys.readouterr().err == "reft-brew needs no_such_module_here; run pip install 'reft-serve[tea]'\n"


def test_command_that_lacks_a_module_of_ours_is_broken_not_incomplete() -> None:
    with pytest.raises(ModuleNotFoundError):
        command.run_command("reft-brew", "reft_server.no_such_module_here", extra="tea")
