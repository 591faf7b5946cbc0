"""Every table of the server, so that the models can be compared with a database."""

from __future__ import annotations

import importlib
import pkgutil

from sqlalchemy import MetaData

import reft_server
from reft_server.tenants.schema import METADATA


def all_tables() -> MetaData:
    """The tables of every module of the server whose name ends with `schema`; these are imported."""
    for module in pkgutil.walk_packages(reft_server.__path__, "reft_server."):
        if module.name.endswith("schema"):
            importlib.import_module(module.name)
    return METADATA
