"""A real PostgreSQL that goes away and comes back, under a directory and a store that stay open."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from reft_interventions import save
from reft_interventions.errors import StoreError
from reft_server.config import Settings
from reft_server.storage import open_store
from reft_server.tenants import TenantDirectory
from tests.intervention_sets import make_set
from tests.postgres import run_postgres


def test_what_is_known_goes_on_while_the_database_is_away(tmp_path: Path) -> None:
    save(make_set(1), tmp_path / "one.safetensors")
    save(make_set(2), tmp_path / "two.safetensors")
    with run_postgres() as postgres:
        url = postgres.empty_database()
        settings = Settings(store_dir=tmp_path / "store", database_url=url)
        with (
            closing(TenantDirectory.of_store(tmp_path, database_url=url)) as directory,
            open_store(settings) as store,
        ):
            directory.create_tenant("acme")
            key = directory.create_key("acme", ("infer",))[1].text
            stored = store.put(tmp_path / "one.safetensors", "haiku")

            postgres.stop()
            for change in (
                directory.refresh,
                store.refresh,
                lambda: directory.create_tenant("bank"),
                lambda: store.put(tmp_path / "two.safetensors", "haiku"),
                lambda: store.delete("haiku"),
            ):
                with pytest.raises(StoreError, match="the database can't be used"):
                    change()
            assert directory.snapshot.caller(key) is not None
            assert store.load(store.resolve("haiku")).content_hash == stored.content_hash

            postgres.start()
            assert not directory.refresh()
            assert not store.refresh()
            directory.create_tenant("bank")
            assert store.put(tmp_path / "two.safetensors", "haiku").version == 2
