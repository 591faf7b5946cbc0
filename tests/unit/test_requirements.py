"""What the packages import is what pyproject.toml asks for, extra by extra: a fresh machine has nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "opentelemetry": "opentelemetry-sdk",
    "prometheus_client": "prometheus-client",
    "pydantic_settings": "pydantic-settings",
}
SOURCES = {
    "client": ("client/reft_client", []),
    "train": ("interventions/reft_interventions", ["train"]),
    "server": ("server/reft_server", ["server"]),
}
# Needed by transformers to read the default model's GGUF file and chat template; imported by name nowhere in ours.
INDIRECT = {"server": {"gguf", "accelerate", "jinja2"}, "train": {"jinja2"}, "client": set()}
# Imported where they are used, and by an extra of their own.
OPTIONAL = {"peft": "lora", "opentelemetry-sdk": "otel", "boto3": "s3", "triton": "gpu"}
# By fastapi, pydantic, transformers and boto3.
BROUGHT_ALONG = {"starlette", "pydantic_core", "tokenizers", "anyio", "botocore"}


def required(extra: str | None) -> set[str]:
    """Distribution names of an extra, of the extras it includes, and of the base install."""
    entries = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    names: set[str] = set()
    for entry in entries:
        match = re.match(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^]]*)\])?", entry)
        assert match
        if match["name"] == PROJECT["name"]:
            names |= set().union(*(required(name.strip()) for name in match["extras"].split(",")))
        else:
            names.add(match["name"].lower())
    return names


def imported(folder: Path) -> set[str]:
    """Top-level names of everything imported below `folder`, wherever in a file."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("part", SOURCES)
def test_every_import_is_required_by_its_extra(part: str) -> None:
    folder, extras = SOURCES[part]
    optional = {name for name, extra in OPTIONAL.items() if name in required(extra)}
    available = required(None).union(optional, *(required(extra) for extra in extras))
    foreign = {
        name
        for name in imported(ROOT / folder) - BROUGHT_ALONG
        if name not in sys.stdlib_module_names and not name.startswith("reft_")
    }
    missing = {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in foreign} | INDIRECT[part]
    assert missing <= available
