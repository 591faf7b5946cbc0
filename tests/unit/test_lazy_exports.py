"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import pkgutil
from types import ModuleType

import pytest

import reft_interventions
import reft_interventions.importers
import reft_interventions.store
import reft_interventions.training
import reft_server.engine
import reft_server.storage

PACKAGES = pytest.mark.parametrize(
    "package",
    [
        reft_interventions,
        reft_interventions.importers,
        reft_interventions.store,
        reft_interventions.training,
        reft_server.engine,
        reft_server.storage,
    ],
)


@PACKAGES
def test_lazy_package_has_every_name_that_it_promises(package: ModuleType) -> None:
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType)
        assert getattr(package, name) is vars(package)[name]  # looked up once


@PACKAGES
def test_lazy_package_has_no_name_that_one_of_its_modules_would_hide(package: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules.isdisjoint(package.__all__)


def test_lazy_package_refuses_a_name_that_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match="module 'reft_interventions' has no attribute 'atach'"):
        _ = reft_interventions.atach  # type: ignore[attr-defined]
