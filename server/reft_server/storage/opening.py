"""The store that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from reft_interventions.store import InterventionStore
from reft_interventions.store.layout import StoreLayout
from reft_server.config import Settings, check_together
from reft_server.errors import ConfigurationError
from reft_server.tenants.database import engine_of_url

from .database_catalog import DatabaseCatalog

if TYPE_CHECKING:
    from .s3_blobs import S3Blobs

_OPTIONS = frozenset({"endpoint_url", "region_name"})


def open_store(settings: Settings) -> InterventionStore:
    """In `store_dir`; with a database URL the versions are in the database, with a blob URL the files in a bucket.

    Raises:
        ConfigurationError: the URLs can't be used, or contradict each other.
        StoreError: the folder, the database or the bucket can't be used.
    """
    check_together(settings)
    root, retention_s = settings.store_dir, settings.deleted_retention_s
    if settings.database_url_text is None:
        return InterventionStore(root, retention_s)
    blobs = None
    if settings.blob_url is not None:
        blobs = s3_blobs(settings.blob_url, root / "blob-cache", int(settings.blob_cache_bytes))
    catalog = DatabaseCatalog(engine_of_url(settings.database_url_text))
    try:
        return InterventionStore(root, retention_s, catalog=catalog, blobs=blobs)
    except BaseException:
        catalog.close()
        raise


def s3_blobs(url: str, cache: Path, max_cache_bytes: int) -> S3Blobs:
    """The bucket of a URL; credentials come from where boto3 looks for them.

    Args:
        url: `s3://bucket/prefix`, then `?endpoint_url=https://...` and `region_name=...` where the environment does
            not say them.

    Raises:
        ConfigurationError: it is none, or boto3 is not installed.
        StoreError: the bucket can't be used.
    """
    parsed = urlsplit(url)
    options = dict(parse_qsl(parsed.query))
    if parsed.scheme != "s3" or not parsed.netloc or not options.keys() <= _OPTIONS:
        raise ConfigurationError(
            "--blob-url must be s3://bucket/prefix, with ?endpoint_url= and &region_name= where needed.",
            param="blob_url",
        )
    try:
        import boto3
        from botocore.config import Config

        from .s3_blobs import S3Blobs
    except ImportError as error:
        raise ConfigurationError("A bucket needs boto3: pip install 'reft-serve[s3]'.", param="blob_url") from error
    limits = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
    client = boto3.client("s3", config=limits, **options)
    prefix = parsed.path.strip("/")
    return S3Blobs(client, parsed.netloc, f"{prefix}/" if prefix else "", StoreLayout(cache), max_cache_bytes)
