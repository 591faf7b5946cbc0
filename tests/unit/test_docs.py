"""The documentation leaves nothing out, and its links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_interventions.errors import ReftError
from reft_server import errors as server_errors
from reft_server.api.app import ROUTE_MODULES
from reft_server.api.errors_table import STATUS_BY_ERROR
from reft_server.config import SettingField, setting_fields
from reft_server.engine.pool import PoolStats
from reft_server.engine.types import EngineStats
from reft_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
)


def without_code(page: Path) -> str:
    """The text of a page, its fenced blocks left out."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def error_types(base: type[ReftError] = ReftError) -> Iterator[type[ReftError]]:
    """The server's tree of errors, root included."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ in (ReftError.__module__, server_errors.__name__):
            yield from error_types(child)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_docs_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("field", setting_fields(), ids=lambda field: field.variable)
def test_docs_settings_have_every_setting_with_its_default(field: SettingField) -> None:
    row = f"| `{field.variable}` | `{field.flag}` | `{field.default_text}` | {field.info.description} |"
    assert row in (ROOT / "docs/settings.md").read_text(encoding="utf-8"), f"docs/settings.md lacks the row:\n{row}"


def test_docs_settings_name_no_setting_that_is_gone() -> None:
    named = set(re.findall(r"^\| `(REFT_\w+)`", (ROOT / "docs/settings.md").read_text(), flags=re.MULTILINE))
    assert named == {field.variable for field in setting_fields()}


def test_docs_settings_list_exactly_the_reloadable_ones() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(REFT_\w+)`", page.partition("Reloadable: ")[2].partition("\n")[0])
    assert listed == [field.variable for field in setting_fields() if field.is_reloadable]


@pytest.mark.parametrize("error", list(error_types()), ids=lambda error: error.__name__)
def test_docs_errors_have_every_code_with_its_status(error: type[ReftError]) -> None:
    assert error in STATUS_BY_ERROR
    row = f"| `{error.code}` | {STATUS_BY_ERROR[error]} |"
    assert row in (ROOT / "docs/errors.md").read_text(encoding="utf-8"), f"docs/errors.md lacks {row}"


def test_docs_errors_name_no_code_that_is_gone() -> None:
    named = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(error.code for error in error_types())


def test_docs_metrics_have_exactly_the_registrys() -> None:
    metrics = Metrics(EngineStats, PoolStats)
    registered = {(family.name, family.type) for family in metrics.registry.collect()}
    rows = re.findall(r"^\| `(reft:\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE)
    assert set(rows) == registered


@pytest.mark.parametrize(("page", "has_all"), [("README.md", False), ("docs/api.md", True)])
def test_pages_list_only_routes_that_are_served(page: str, has_all: bool) -> None:
    served = {
        (method, re.sub(r":\w+\}", "}", route.path))
        for module in ROUTE_MODULES
        for route in module.router.routes
        for method in route.methods
    }
    listed = set()
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        method = None
        is_row = re.match(r"\| `(GET|POST|PUT|PATCH|DELETE) ", line)
        for word in re.findall(r"`([^`]+)`", line.split("|")[1] if is_row else ""):
            *verb, path = word.partition("?")[0].split(" ")
            method = verb[0] if verb else method
            if method:
                listed.add((method, path))
    assert listed == served if has_all else set() < listed < served


def test_make_help_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert re.findall(r"^  make (\S+)", shown, flags=re.MULTILINE)
    assert set(re.findall(r"^  make (\S+)", shown, flags=re.MULTILINE)) == set(phony[1].split())
