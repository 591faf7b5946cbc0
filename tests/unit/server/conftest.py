"""Fixtures of the server's parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Put the root logger back as pytest had it."""
    root = logging.getLogger()
    saved = (root.level, root.handlers[:])
    own = {name: logging.getLogger(name).level for name in ("reft_server", "reft_interventions", "py.warnings")}
    yield
    logging.captureWarnings(False)
    root.setLevel(saved[0])
    root.handlers[:] = saved[1]
    for name, level in own.items():
        logging.getLogger(name).setLevel(level)
