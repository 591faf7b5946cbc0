"""`reft interventions promote`, `rollback`, `restore`, `describe`, `card`, `test` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.client.fakes import INFO, Run, Server

ALIAS = {"name": "haiku", "alias": "prod", "version": 2, "content_hash": "sha256:ff", "previous": 1}


def test_promote_and_rollback_say_what_an_alias_names(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku/aliases/prod", ALIAS)
    server.json("/v1/interventions/haiku/aliases/prod/rollback", {**ALIAS, "version": 1, "previous": 2})
    assert run("interventions", "promote", "haiku@2", "prod")[1] == "haiku@prod is version 2, which was version 1\n"
    assert json.loads(server.requests[0].content) == {"version": 2}
    assert run("interventions", "rollback", "haiku", "prod")[1] == "haiku@prod is version 1, which was version 2\n"
    code, _, err = run("interventions", "promote", "haiku", "prod")
    assert code != 0
    assert "say which version" in err


def test_aliases_are_a_table(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku/aliases", {"data": [ALIAS, {**ALIAS, "alias": "old", "content_hash": ""}]})
    _, out, _ = run("interventions", "aliases", "haiku")
    assert out.splitlines()[1:] == ["prod\t2\tsha256:ff", "old\t2\tdeleted"]


def test_describe_sets_labels_and_takes_them_away(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku", {**INFO, "description": "x", "labels": {"task": "a"}})
    _, out, _ = run("interventions", "describe", "haiku", "--label", "task=a", "--label", "flag", "--label", "old-")
    assert json.loads(server.requests[0].content) == {"labels": {"task": "a", "flag": "", "old": None}}
    assert out.splitlines()[1:] == ["description\tx", "task\ta"]
    assert run("interventions", "describe", "haiku")[0] == 2


def test_restore_names_what_lives_again(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku/restore", {"name": "haiku", "data": [INFO]})
    assert run("interventions", "restore", "haiku@3")[1] == "restored haiku@3 of 1970-01-01 00:00 UTC\n"
    assert server.requests[0].url.params["version"] == "3"


def test_card_is_written_from_a_file(server: Server, run: Run, tmp_path: Path) -> None:
    server.json("/v1/interventions/haiku/card", INFO)
    path = tmp_path / "card.md"
    path.write_text("# Haiku\n")
    assert run("interventions", "card", "haiku", "--write", str(path))[1] == "wrote the card of haiku\n"
    assert server.requests[0].content == b"# Haiku\n"
    code, _, err = run("interventions", "card", "haiku", "--write", str(tmp_path / "none.md"))
    assert code != 0
    assert "none.md" in err


def test_test_shows_what_changed(server: Server, run: Run) -> None:
    site = {"layer": 1, "component": "block_output", "num_edited_rows": 6, "delta_norm": 0.5, "residual_norm": 20}
    answer = {"name": "haiku", "version": 3, "content_hash": "x", "self_test": {"sites": [site]}}
    server.json("/v1/interventions/haiku/test", answer)
    _, out, _ = run("interventions", "test", "haiku")
    assert out.splitlines()[0] == "haiku@3 passed"
    assert out.splitlines()[-1] == "1\tblock_output\t6\t0.5"


def test_compare_shows_both_answers(server: Server, run: Run) -> None:
    side = {"id": "c", "created": 1, "model": "m"}
    base = {**side, "choices": [{"index": 0, "text": "plain"}]}
    edited = {**side, "choices": [{"index": 0, "text": "verse"}]}
    answer = {"name": "haiku", "version": 3, "content_hash": "x", "is_same": False, "base": base, "edited": edited}
    server.json("/v1/interventions/haiku/compare", answer)
    _, out, _ = run("interventions", "compare", "haiku", "The sea", "--max-tokens", "4")
    assert out.splitlines()[1:] == ["base model\tplain", "haiku@3\tverse"]
    sent = json.loads(server.requests[0].content)
    assert (sent["prompt"], sent["max_tokens"], sent["seed"], sent["temperature"]) == ("The sea", 4, 0, 0.0)


def test_list_reads_every_page_and_searches(server: Server, run: Run) -> None:
    server.json("/v1/interventions", {"data": [], "has_more": False})
    assert "none" in run("interventions", "list", "--label", "task=a")[2]
    assert dict(server.requests[0].url.params) == {"label": "task=a"}
