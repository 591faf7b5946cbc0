"""The images and compose files name what there is; `try_outside.py` beside this runs what they run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from reft_server.config import Settings
from tests.docker.try_outside import compose, environment, instructions

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = list(instructions((DOCKER / "Dockerfile").read_text()))
COMPOSE = ("compose.yml", "compose.stack.yml", "compose.cuda.yml")
SERVICES = [(name, service) for name in COMPOSE for service in compose(name).items()]


def of(keyword: str) -> list[str]:
    return [rest for found, rest in DOCKERFILE if found == keyword]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    command = [hadolint, "--config", str(DOCKER / ".hadolint.yaml"), str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    sources = [word for rest in of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored


def test_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.findall(r"'\.\[(.*?)\]'", "\n".join(of("RUN")))
    assert found
    assert set(found[0].split(",")) <= set(extras)


def test_stages_end_as_a_user_without_rights() -> None:
    last = DOCKERFILE[max(i for i, (keyword, _) in enumerate(DOCKERFILE) if keyword == "FROM") :]
    assert [rest for keyword, rest in last if keyword == "USER"] == ["1000"]
    assert {"HEALTHCHECK", "ENTRYPOINT"} <= {keyword for keyword, _ in last}


def setting_names(settings: Any = Settings, prefix: str = "REFT_") -> set[str]:
    """Every variable that the server knows."""
    names = set()
    for name, field in settings.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        names |= setting_names(field.annotation, f"{prefix}{name.upper()}_") if nested else {prefix + name.upper()}
    return names


def test_settings_exist() -> None:
    written = [pair.split("=")[0] for rest in of("ENV") for pair in rest.split()]
    written += [name for _, (_, service) in SERVICES for name in service.get("environment", {})]
    ours = {name for name in written if name.startswith("REFT_")}
    assert len(ours) > 4
    assert ours <= setting_names()


@pytest.mark.parametrize(("file", "named"), SERVICES)
def test_services_mount_what_there_is_and_listen_on_this_machine_only(
    file: str, named: tuple[str, dict[str, Any]]
) -> None:
    _, service = named
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./") and source != "./metrics-key":  # which its reader makes
            assert (DOCKER / source).is_file(), source
        elif not source.startswith("./"):
            assert source in yaml.safe_load((DOCKER / file).read_text())["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_prometheus_and_grafana_find_what_they_are_given() -> None:
    services = compose("compose.stack.yml")
    prometheus = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    mounted = {Path(volume.split(":")[1]) for volume in services["prometheus"]["volumes"]}
    scrape = prometheus["scrape_configs"][0]
    for name in (*prometheus["rule_files"], scrape["authorization"]["credentials_file"]):
        assert Path("/etc/prometheus") / name in mounted
    assert scrape["static_configs"] == [{"targets": ["server:8000"]}]
    provider = yaml.safe_load((DOCKER / "grafana/dashboards.yml").read_text())["providers"][0]
    dashboards = [Path(volume.split(":")[1]) for volume in services["grafana"]["volumes"] if ".json" in volume]
    assert [path.parent for path in dashboards] == [Path(provider["options"]["path"])]


def test_environment_fills_in_variables_and_needs_them() -> None:
    service = compose("compose.stack.yml")["server"]
    url = environment(service, {"POSTGRES_PASSWORD": "s3"})["REFT_DATABASE_URL"]
    assert url == "postgresql://reft:s3@postgres/reft"
    with pytest.raises(KeyError):
        environment(service, {})
