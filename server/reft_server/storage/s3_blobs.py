"""The files of sets in a bucket that speaks S3, with a bounded cache on this machine."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from reft_interventions.errors import StoreError
from reft_interventions.store import DiskBlobs, durable
from reft_interventions.store.layout import StoreLayout

_NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Blobs:
    """Objects `<prefix>sha256/<2 digits>/<64 digits>.safetensors`; see `BlobStore`.

    Every use goes through the cache: a file is fetched once per machine, before its set is read. May be called from
    any thread; nothing here runs in an event loop.

    Args:
        client: boto3's, for S3.
        prefix: of the objects' names, ending with a slash or empty. Nobody else may write there.
        cache: folder of the copies.
        max_cache_bytes: of the copies together; those longest not used go first.

    Raises:
        StoreError: the bucket can't be used.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, cache: StoreLayout, max_cache_bytes: int) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._layout = cache
        self._cache = DiskBlobs(cache)
        self._max_cache_bytes = max_cache_bytes
        cache.make()
        with self._service():
            client.head_bucket(Bucket=bucket)

    def prepare(self, staged: Path, content_hash: str) -> None:
        """Send the file, before anybody waits for the lock."""
        with self._service(), staged.open("rb") as file:
            self._client.put_object(Bucket=self._bucket, Key=self._key(content_hash), Body=file)

    def place(self, staged: Path, content_hash: str) -> tuple[Path, ...]:
        """Keep it as the copy; sent again if somebody has removed the object since `prepare`."""
        if not self._exists(content_hash):
            self.prepare(staged, content_hash)
        self._cache.place(staged, content_hash)
        self._evict(self._cache.path(content_hash))
        return ()

    def path(self, content_hash: str) -> Path:
        """The copy on this machine, fetched where there is none."""
        copy = self._cache.path(content_hash)
        try:
            os.utime(copy)  # the time of its last use
        except FileNotFoundError:
            self._fetch(content_hash, copy)
        return copy

    def drop_copy(self, content_hash: str) -> bool:
        """Forget this machine's copy."""
        self._cache.remove(content_hash)
        return True

    def is_intact(self, content_hash: str) -> bool:
        """Whether the object is there and holds that content, which is fetched where the copy does not."""
        if not self._exists(content_hash):
            return False
        if not self._cache.is_intact(content_hash):
            self.drop_copy(content_hash)
            self.path(content_hash)
        return self._cache.is_intact(content_hash)

    def remove(self, content_hash: str) -> None:
        """Remove the object and the copy here; copies elsewhere go when their cache is full."""
        with self._service():
            self._client.delete_object(Bucket=self._bucket, Key=self._key(content_hash))
        self._cache.remove(content_hash)

    def remove_unused(self, used: Set[str]) -> int:
        """Remove every object below the prefix but those of these content hashes; says how many."""
        kept = {self._key(content_hash) for content_hash in used}
        num_removed = 0
        with self._service():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}sha256/"
            )
            for key in [entry["Key"] for page in pages for entry in page.get("Contents", ())]:
                if key not in kept:
                    self._client.delete_object(Bucket=self._bucket, Key=key)
                    num_removed += 1
        self._cache.remove_unused(used)
        return num_removed

    def _key(self, content_hash: str) -> str:
        digits = content_hash.removeprefix("sha256:")
        return f"{self._prefix}sha256/{digits[:2]}/{digits}.safetensors"

    def _exists(self, content_hash: str) -> bool:
        try:
            with self._service():
                self._client.head_object(Bucket=self._bucket, Key=self._key(content_hash))
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, content_hash: str, copy: Path) -> None:
        temporary = durable.temporary_path(self._layout.temporary, ".fetch")
        try:
            with self._service(), temporary.open("wb") as file:
                found = self._client.get_object(Bucket=self._bucket, Key=self._key(content_hash))
                with found["Body"] as body:
                    shutil.copyfileobj(body, file)
            copy.parent.mkdir(exist_ok=True)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)
        self._evict(copy)

    def _evict(self, kept: Path) -> None:
        """Remove the copies longest not used until the rest fits; open files stay readable."""
        copies = []
        for path in self._layout.all_blobs():
            try:
                copies.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:
                continue  # another server on this machine was faster
        num_bytes = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if num_bytes <= self._max_cache_bytes:
                break
            if path != kept:
                path.unlink(missing_ok=True)
                num_bytes -= size

    @contextmanager
    def _service(self) -> Iterator[None]:
        """What the service answers, as our errors: an object that is not there is a `FileNotFoundError`."""
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            if code in _NOT_FOUND and error.operation_name in ("HeadObject", "GetObject"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise StoreError(f"the bucket {self._bucket!r} can't be used: {error.operation_name} {code}") from error
        except BotoCoreError as error:
            raise StoreError(f"the bucket {self._bucket!r} can't be used: {type(error).__name__}") from error
