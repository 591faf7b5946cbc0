"""The command `reft-serve`, up to the point where a model would be loaded."""

from __future__ import annotations

import json
import logging
import socket
import warnings
from pathlib import Path

import pytest

from reft_server import cli, serving
from reft_server.config import setting_fields
from reft_server.errors import ConfigurationError
from reft_server.logging_setup import LogFormat, configure_logging


def test_help_names_every_setting_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in setting_fields():
        assert field.flag in shown
        assert f"[{field.variable}]" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port (or REFT_PORT) is '70000'"),
        (["--engine-max-num-seqs", "0"], "--engine-max-num-seqs (or REFT_ENGINE_MAX_NUM_SEQS) is '0'"),
        (["--fetch-only", "--model", "./no/such/folder"], "is no folder"),
        (["--blob-url", "s3://bucket"], "--blob-url needs --database-url (REFT_DATABASE_URL)"),
        (["--host", "192.0.2.1"], "Can't listen on 192.0.2.1 port 8000"),
    ],
)
def test_start_that_fails_says_why_in_one_line(
    capsys: pytest.CaptureFixture[str], restored_logging: None, arguments: list[str], words: str
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("reft-serve: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_misspelt_variable_stops_the_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFT_PROT", "1")
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "reft-serve: Unknown setting REFT_PROT: did you mean REFT_PORT?\n"


def test_port_in_use_shows_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["--port", str(port), "--model", "./no/such/folder"]) == 2
    assert f"port {port}: Address already in use" in capsys.readouterr().err


def test_port_of_a_server_that_still_loads_its_model_is_in_use(
    capsys: pytest.CaptureFixture[str], restored_logging: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds: list[int] = []

    def start_another(listener: socket.socket, *_: object) -> tuple[()]:
        seconds.append(cli.main(["--port", str(listener.getsockname()[1]), "--store-dir", str(tmp_path)]))
        raise ConfigurationError("enough seen")

    monkeypatch.setattr(serving, "check_exposure", start_another)
    assert cli.main(["--port", "0", "--store-dir", str(tmp_path)]) == 2
    assert seconds == [2]
    assert ": Address already in use" in capsys.readouterr().err


def test_port_whose_last_connections_are_not_forgotten_yet_can_be_taken(
    capsys: pytest.CaptureFixture[str], restored_logging: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as ended:
        ended.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ended.bind(("127.0.0.1", 0))
        ended.listen()
        port = ended.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            ended.accept()[0].close()  # the side that closes first waits, for a minute
            assert client.recv(1) == b""

    def stop(listener: socket.socket, *_: object) -> tuple[()]:
        raise ConfigurationError(f"bound to {listener.getsockname()[1]}")

    monkeypatch.setattr(serving, "check_exposure", stop)
    assert cli.main(["--port", str(port), "--store-dir", str(tmp_path)]) == 2
    assert f"bound to {port}" in capsys.readouterr().err


def test_beginning_of_a_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--engine-max-num-seq", "4"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --engine-max-num-seq" in capsys.readouterr().err


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logging_keeps_our_events_and_drops_library_noise(
    capsys: pytest.CaptureFixture[str], restored_logging: None, log_format: LogFormat
) -> None:
    configure_logging("info", log_format)
    logging.getLogger("reft_server.x").info("event key=%d", 1)
    logging.getLogger("reft_server.x").debug("hidden")
    logging.getLogger("httpx").info("hidden")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("hidden", DeprecationWarning, stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    if log_format == "json":
        entry = json.loads(lines[0])
        assert (entry["level"], entry["logger"], entry["message"]) == ("info", "reft_server.x", "event key=1")
    else:
        assert lines[0].endswith("INFO event key=1")
