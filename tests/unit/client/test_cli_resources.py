"""`reft interventions`, `reft models` and `reft health`."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import httpx
import pytest

from tests.unit.client.fakes import INFO, Run, Server, type_in


def test_health_fails_when_the_engine_is_not_ready(server: Server, run: Run) -> None:
    server.json("/health", {"status": "ok"})
    server.error("/ready", 503, "the engine is starting", "engine_unavailable")
    assert run("health") == (1, "", "reft: the engine is starting; try again in a moment\n")


def test_models_lists_base_and_interventions(server: Server, run: Run) -> None:
    base = {"id": "m", "created": 1}
    server.json("/v1/models", {"data": [base, {"id": "haiku", "created": 1, "root": "m", "parent": "m"}]})
    assert run("models")[1].splitlines() == ["id\tkind\tbase model", "m\tbase\t", "haiku\tintervention\tm"]


def test_interventions_list_is_a_table_and_json(server: Server, run: Run) -> None:
    server.json("/v1/interventions", {"data": [INFO]})
    _, out, _ = run("interventions", "list")
    row = "haiku\t3\tloreft\t1,2\tf3+l3\t4\t20.0 KiB\t1970-01-01 00:00\tloaded"
    assert out.splitlines()[1:] == [row]
    assert json.loads(run("interventions", "list", "--json")[1])["data"][0]["name"] == "haiku"


def test_interventions_list_of_an_empty_store_says_so(server: Server, run: Run) -> None:
    server.json("/v1/interventions", {"data": []})
    code, out, err = run("interventions", "list")
    assert (code, out) == (0, "")
    assert "upload" in err


def test_interventions_show_has_no_control_characters(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku", INFO)
    _, out, _ = run("interventions", "show", "haiku@3")
    assert server.requests[0].url.params["version"] == "3"
    assert "description\tanswers in \ufffd[31mhaiku" in out
    assert "parameters\t12,345" in out


def test_interventions_versions_lists_them(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku/versions", {"name": "haiku", "data": [{**INFO, "version": 1}, INFO]})
    assert [line.split("\t")[1] for line in run("interventions", "versions", "haiku")[1].splitlines()[1:]] == ["1", "3"]
    assert len(json.loads(run("interventions", "versions", "haiku", "--json")[1])["data"]) == 2


def test_interventions_versions_say_until_when_a_deleted_one_can_be_restored(server: Server, run: Run) -> None:
    gone = {**INFO, "state": "stored", "deleted": 60, "restorable_until": 604860}
    server.json("/v1/interventions/haiku/versions", {"name": "haiku", "data": [gone]})
    _, out, _ = run("interventions", "versions", "haiku", "--deleted")
    assert out.splitlines()[1].split("\t")[-1] == "deleted, restorable until 1970-01-08 00:01"


def test_interventions_upload_shows_the_version_and_its_self_test(server: Server, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    path.write_bytes(b"content")
    site = {"layer": 1, "component": "block_output", "num_edited_rows": 6, "delta_norm": 0.5, "residual_norm": 20}
    server.json("/v1/interventions", {**INFO, "self_test": {"sites": [site], "duration_s": 0.1}}, 201)
    code, out, err = run("interventions", "upload", str(path))
    assert code == 0
    assert "self-test\tlayer 1 block_output: 6 rows edited, change 0.5 of norm 20" in out
    assert "-i haiku" in err
    assert server.requests[0].content == b"content"
    assert server.requests[0].url.params["name"] == "haiku"
    assert json.loads(run("interventions", "upload", str(path), "--name", "other", "--json")[1])["version"] == 3
    assert server.requests[1].url.params["name"] == "other"


@pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_interventions_delete_asks_first(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, is_deleted: bool
) -> None:
    type_in(monkeypatch, answer, is_terminal=True)
    server.json("/v1/interventions/haiku", {"name": "haiku", "version": 2, "deleted": True})
    code, out, _ = run("interventions", "delete", "haiku@2")
    assert code == 0
    assert ("deleted haiku@2" in out) is is_deleted
    assert len(server.requests) == int(is_deleted)


def test_interventions_delete_with_yes_does_not_ask(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku", {"name": "haiku", "version": None, "deleted": True})
    assert run("interventions", "delete", "haiku", "--yes")[1] == "deleted haiku\n"
    assert server.requests[0].method == "DELETE"


def test_interventions_delete_with_no_one_to_ask_is_wrong_usage(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "", is_terminal=False)
    code, _, err = run("interventions", "delete", "haiku")
    assert (code, server.requests) == (2, [])
    assert "--yes" in err


def test_interventions_download_saves_and_never_overwrites_unasked(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.json("/v1/interventions/haiku", INFO)
    server.answers["/v1/interventions/haiku/download"] = lambda _: httpx.Response(200, content=b"bytes")
    assert run("interventions", "download", "haiku")[1] == "saved haiku@3 as haiku.safetensors\n"
    assert Path("haiku.safetensors").read_bytes() == b"bytes"
    Path("haiku.safetensors").write_bytes(b"mine")
    code, _, err = run("interventions", "download", "haiku")
    assert (code, Path("haiku.safetensors").read_bytes()) == (2, b"mine")
    assert "--force" in err
    assert run("interventions", "download", "haiku", "--force", "--json")[0] == 0
    assert Path("haiku.safetensors").read_bytes() == b"bytes"


def test_interventions_download_stays_in_the_folder(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    server.json("/v1/interventions/haiku", {**INFO, "name": "../evil"})
    server.answers["/v1/interventions/../evil/download"] = lambda _: httpx.Response(200, content=b"bytes")
    assert run("interventions", "download", "haiku")[0] == 0
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["evil.safetensors"]


def test_interventions_download_reports_a_full_disk(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("reft_client.exchange.FileSink.write", fail)
    server.json("/v1/interventions/haiku", INFO)
    server.answers["/v1/interventions/haiku/download"] = lambda _: httpx.Response(200, content=b"bytes")
    code, _, err = run("interventions", "download", "haiku", "-o", str(tmp_path / "out"))
    assert (code, err) == (1, "reft: a local file: No space left on device\n")
    assert list(tmp_path.iterdir()) == []
