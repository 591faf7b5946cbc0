"""`reft-serve keys`, and a start that would let everybody in."""

from __future__ import annotations

from pathlib import Path

import pytest

from reft_server import cli
from reft_server.tenants import TenantDirectory


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = cli.main(["keys", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_keys_are_made_listed_rotated_and_revoked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = ("--store-dir", str(tmp_path / "new" / "store"))
    code, made, note = run(capsys, "create", "acme", *store, "--scopes", "infer", "--expires-in-days", "2")
    assert (code, made.count("\n")) == (0, 1)
    assert "of acme, for infer, until 2" in note
    key_id = made.split("-")[1]
    assert run(capsys, "list", *store)[1].split("\t")[:4] == [key_id, "acme", "infer", "active"]
    rotated = run(capsys, "rotate", key_id, *store)[1]
    assert run(capsys, "revoke", rotated.split("-")[1], *store)[0] == 0
    listed = run(capsys, "list", *store)[1]
    assert [line.split("\t")[3] for line in listed.splitlines()] == ["expired", "revoked"]
    assert made.strip() not in listed


def test_operators_key_has_every_scope(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, "create", "--store-dir", str(tmp_path))
    assert run(capsys, "list", "--store-dir", str(tmp_path))[1].split("\t")[1:3] == [
        "shared",
        "admin,infer,metrics,upload",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "Acme"), "can't name a tenant"),
        (("create", "acme", "--scopes", "admin"), "Only keys of the tenant 'shared'"),
        (("rotate", "nothing"), "There is no living key 'nothing'"),
        (("revoke", "nothing"), "There is no living key 'nothing'"),
    ],
)
def test_command_that_can_not_be_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = run(capsys, *arguments, "--store-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert words in err


def test_address_that_others_reach_needs_a_key_or_insecure(
    capsys: pytest.CaptureFixture[str], restored_logging: None, tmp_path: Path
) -> None:
    start = ["--host", "0.0.0.0", "--port", "0", "--store-dir", str(tmp_path), "--model", "./no/such/folder"]
    assert cli.main(start) == 2
    assert "or say --insecure" in capsys.readouterr().err
    assert cli.main([*start, "--insecure"]) == 2
    assert "is no folder" in capsys.readouterr().err  # past the check
    directory = TenantDirectory.of_store(tmp_path)
    directory.open()
    directory.create_tenant("acme")
    directory.create_key("acme", ("infer",))
    directory.close()
    assert cli.main(start) == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_own_addresses_need_no_key(
    capsys: pytest.CaptureFixture[str], restored_logging: None, tmp_path: Path, host: str
) -> None:
    assert cli.main(["--host", host, "--port", "0", "--store-dir", str(tmp_path), "--model", "./no/such/folder"]) == 2
    assert "is no folder" in capsys.readouterr().err
