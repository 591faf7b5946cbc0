"""A real S3 server process for tests: moto's, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint_url: str

    def client(self) -> Any:
        """boto3's, with rights to everything."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def empty_bucket(self) -> str:
        """The URL of a prefix in a new bucket, as `--blob-url` takes it."""
        name = f"test-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}/reft?endpoint_url={self.endpoint_url}&region_name=us-east-1"

    def keys(self, url: str) -> list[str]:
        """The objects in the bucket of a URL."""
        found = self.client().list_objects_v2(Bucket=url.split("/")[2])
        return [entry["Key"] for entry in found.get("Contents", ())]


@contextmanager
def run_s3_server() -> Iterator[S3Server]:
    """Start a server, and stop it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stderr is not None
        found = (re.search(r"Running on (http://[\d.:]+)", line) for line in process.stderr)
        url = next((match[1] for match in found if match), None)
        assert url, "moto's server did not start"
        yield S3Server(url)
    finally:
        process.terminate()
        process.communicate(timeout=30)
