"""The dashboard and the alert rules are valid, and ask for what a server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml
from starlette.testclient import TestClient

from reft_client.types import JobStatus
from reft_interventions.errors import ReftError
from reft_server.api.errors_table import STATUS_BY_ERROR

DOCKER = Path(__file__).parents[4] / "docker"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}


def without_variables(expression: str) -> str:
    """Grafana's variables as Prometheus would get them."""
    return expression.replace("$__rate_interval", "5m").replace("$instance", ".*")


@pytest.fixture
def served_names(client: TestClient) -> set[str]:
    """Names of every series that the server's /metrics can have."""
    types = re.findall(r"^# TYPE (\S+) (\w+)$", client.get("/metrics").text, flags=re.MULTILINE)
    return {name + suffix for name, kind in types for suffix in SUFFIXES[kind]}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_parse_and_name_metrics_that_are_served(expression: str, served_names: set[str]) -> None:
    promql_parser.parse(without_variables(expression))
    named = set(re.findall(r"reft:\w+", expression))
    assert named
    assert named <= served_names


def test_check_of_expressions_can_fail(served_names: set[str]) -> None:
    with pytest.raises(ValueError, match=r"invalid|unexpected|unclosed"):
        promql_parser.parse("sum(rate(reft:ready[5m])")
    assert "reft:time_to_first_token_seconds" not in served_names
    assert "reft:request_errors" not in served_names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_rules_have_the_fields_that_prometheus_takes(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Reft\w+", rule["alert"])
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")
    assert f"`{rule['alert']}`" in (DOCKER.parent / "docs/operations.md").read_text(encoding="utf-8")


def test_labels_that_alerts_select_exist() -> None:
    codes = {error.code for error in STATUS_BY_ERROR if issubclass(error, ReftError)}
    selected = set(re.findall(r'code=~?"([^"]+)"', " ".join(EXPRESSIONS)))
    assert {code for value in selected for code in value.split("|")} <= codes
    assert set(re.findall(r'status="(\w+)"', " ".join(EXPRESSIONS))) <= set(get_args(JobStatus))


def test_dashboard_panels_do_not_overlap_and_ask_the_chosen_source() -> None:
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS}
    assert (
        len(places)
        == len({panel["id"] for panel in PANELS})
        == len({panel["title"] for panel in PANELS})
        == len(PANELS)
    )
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}


def test_dashboard_shows_every_counter_that_has_labels(client: TestClient) -> None:
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    table = (DOCKER.parent / "docs" / "metrics.md").read_text()
    labelled = re.findall(r"^\| `(reft:\w+)` \| counter \| `", table, flags=re.MULTILINE)
    assert len(labelled) > 5
    assert [name for name in labelled if f"{name}_total" not in shown] == []
