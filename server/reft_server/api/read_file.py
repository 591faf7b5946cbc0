"""A file's content, for a response that streams it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import BinaryIO

_READ_BYTES = 256 << 10


async def read_file(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    """The rest of `file`, in pieces; it is closed at the end."""
    try:
        while data := await asyncio.to_thread(file.read, _READ_BYTES):
            yield data
    finally:
        file.close()
