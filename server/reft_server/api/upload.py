"""An upload's body goes to a file as it arrives: raw, or one part of a multipart form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from reft_interventions.errors import InterventionFileTooLargeError
from reft_server.errors import InvalidRequestError, PayloadTooLargeError, ReftError

from .digests import BodyDigest

_WRITE_BYTES = 1 << 20
_MAX_FIELD_BYTES = 1024
_MAX_FIELDS = 16


@dataclass(frozen=True)
class UploadForm:
    """What a form said besides the file's content. `filename` is the client's and names nothing here."""

    fields: Mapping[str, str] = field(default_factory=dict)
    filename: str = ""


class FileSink:
    """A new file that refuses to grow beyond a limit; writes happen in a thread, a megabyte at a time."""

    def __init__(self, path: Path, max_bytes: int, too_large: type[ReftError]) -> None:
        self._path = path
        self._too_large = too_large
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._buffer = bytearray()
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> FileSink:
        self._file = await asyncio.to_thread(self._path.open, "xb")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self._flush()
        if self._file is not None:
            self._file.close()

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            ReftError: the file would exceed the limit; of the type `too_large`.
        """
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise self._too_large(f"The file is larger than {self._max_bytes} bytes", param="file")
        self._buffer += data
        if len(self._buffer) >= _WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._file is not None and self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            await asyncio.to_thread(self._file.write, data)


async def receive_upload(request: Request, path: Path, max_bytes: int, digest: BodyDigest) -> str | None:
    """Write the uploaded file to `path`; the name from the form or the query, None if there is none.

    Raises:
        ContentDigestError: the body is not what its `Content-Digest` says.
        InvalidRequestError: a malformed form, a form without a file, an empty body.
        InterventionFileTooLargeError: the file exceeds `max_bytes`.
        ClientDisconnect: the client went away midway.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    async with FileSink(path, max_bytes, InterventionFileTooLargeError) as sink:
        if kind == b"multipart/form-data":
            form = await _receive_form(_counted(request, digest), options.get(b"boundary", b""), sink)
            digest.check()
            return form.fields.get("name", request.query_params.get("name"))
        num_bytes = 0
        async for data in _counted(request, digest):
            num_bytes += len(data)
            await sink.write(data)
        if not num_bytes:
            raise InvalidRequestError("The body is empty: send the file's bytes", param="file")
        digest.check()
    return request.query_params.get("name")


async def _counted(request: Request, digest: BodyDigest) -> AsyncGenerator[bytes, None]:
    async for data in request.stream():
        digest.update(data)
        yield data


async def receive_form(request: Request, path: Path, max_bytes: int) -> UploadForm:
    """Write the part `file` of a multipart form to `path`; what else the form holds.

    Raises:
        InvalidRequestError: no form, a malformed one, or one without a file.
        PayloadTooLargeError: the file exceeds `max_bytes`.
        ClientDisconnect: the client went away midway.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise InvalidRequestError("Send multipart/form-data with the parts file and purpose", param="file")
    async with FileSink(path, max_bytes, PayloadTooLargeError) as sink:
        return await _receive_form(request.stream(), options.get(b"boundary", b""), sink)


async def _receive_form(body: AsyncGenerator[bytes, None], boundary: bytes, sink: FileSink) -> UploadForm:
    form = _Form(boundary)
    async for data in body:
        await sink.write(form.feed(data))
    form.finish()
    return UploadForm(form.fields, form.filename)


class _Form:
    """A multipart form with one part `file`, and a few small text fields."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise InvalidRequestError("multipart/form-data needs a boundary")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._file_bytes = bytearray()
        self._value = bytearray()
        self._header = bytearray()
        self._header_value = bytearray()
        self._part = ""
        self._has_file = False
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, data: bytes) -> bytes:
        """Parse the next bytes; what belongs to the file."""
        if data:
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise _malformed(error) from error
        file_bytes, self._file_bytes = bytes(self._file_bytes), bytearray()
        return file_bytes

    def finish(self) -> None:
        """Check that the form is whole."""
        if not self._is_complete:
            raise InvalidRequestError("The multipart form is cut off")
        if not self._has_file:
            raise InvalidRequestError("The form has no part named file", param="file")

    def _on_part_begin(self) -> None:
        self._part = ""
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        header, value = bytes(self._header).lower(), bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()
        if header == b"content-disposition":
            options = parse_options_header(value)[1]
            self._part = options.get(b"name", b"").decode("utf-8", "replace")
            if self._part != "file":
                return
            if self._has_file:
                raise InvalidRequestError("The form has several parts named file", param="file")
            self._has_file, self.filename = True, options.get(b"filename", b"").decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._file_bytes += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise InvalidRequestError(f"A text field is larger than {_MAX_FIELD_BYTES} bytes", param=self._part)

    def _on_part_end(self) -> None:
        if self._part and self._part != "file":
            self.fields[self._part] = self._value.decode("utf-8", "replace")
        if len(self.fields) > _MAX_FIELDS:
            raise InvalidRequestError(f"The form has more than {_MAX_FIELDS} fields")

    def _on_end(self) -> None:
        self._is_complete = True


def _malformed(error: FormParserError) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart form can't be read: {error}")
