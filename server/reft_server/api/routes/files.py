"""`/v1/files`: the data that jobs train on, and what they measured."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from reft_client.types import FileDeleted, FileList, FileObject
from reft_server.errors import InvalidRequestError, UnsupportedParameterError
from reft_server.fine_tuning.records import FileRecord, page

from ..authentication import Upload
from ..context import Tuning
from ..openapi import ERROR, FILE_BODY, FILE_RESPONSES
from ..read_file import read_file
from ..upload import UploadForm, receive_form

router = APIRouter(prefix="/v1/files", tags=["fine-tuning"])

_LOOKUP: dict[int | str, dict[str, Any]] = {404: {**ERROR, "description": "No such file."}}
_MAX_FILENAME = 255


@router.post("", summary="Upload data to train on", responses=FILE_RESPONSES, openapi_extra=FILE_BODY)
async def upload_file(request: Request, caller: Upload, tuning: Tuning) -> FileObject:
    """Keep a JSONL file. Every line is checked now; a job tokenizes them."""
    files = tuning.files
    files.check_quota(caller.tenant.name)
    path = files.new_upload_path()
    try:
        form = await receive_form(request, path, tuning.settings.max_file_bytes)
        _check_fields(form)
        record = await files.add(path, form.filename[:_MAX_FILENAME] or "data.jsonl", caller.tenant.name)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return _file_object(record)


@router.get("", summary="List files")
async def list_files(
    caller: Upload,
    tuning: Tuning,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """Every file, newest first; `after=last_id` asks for the next page."""
    records = [record for record in tuning.files.list(caller.tenant.name) if purpose in (None, record.purpose)]
    chosen, has_more = page(records if order == "desc" else records[::-1], after, limit)
    data = tuple(_file_object(record) for record in chosen)
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more
    )


@router.get("/{file_id}", summary="Show one file", responses=_LOOKUP)
async def get_file(caller: Upload, tuning: Tuning, file_id: str) -> FileObject:
    """What is known about it, without its content."""
    return _file_object(tuning.files.get(file_id, caller.tenant.name))


@router.get("/{file_id}/content", summary="Download a file", responses=_LOOKUP, response_class=StreamingResponse)
async def get_file_content(caller: Upload, tuning: Tuning, file_id: str) -> Response:
    """The content, byte for byte as it was uploaded."""
    record = tuning.files.get(file_id, caller.tenant.name)
    file = await asyncio.to_thread(tuning.files.open_content, record)
    headers = {"content-length": str(record.num_bytes)}
    return StreamingResponse(read_file(file), headers=headers, media_type="application/octet-stream")


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    responses={**_LOOKUP, 409: {**ERROR, "description": "A job that has not ended needs it."}},
)
async def delete_file(caller: Upload, tuning: Tuning, file_id: str) -> FileDeleted:
    """Remove a file that no waiting or running job needs."""
    return FileDeleted(id=(await tuning.delete_file(file_id, caller.tenant.name)).id)


def _check_fields(form: UploadForm) -> None:
    for name in form.fields:
        if name.startswith("expires_after"):
            raise UnsupportedParameterError("expires_after is not served: delete the file", param="expires_after")
        if name != "purpose":
            raise InvalidRequestError(f"{name[:64]!r} is unknown", param=name[:64])
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidRequestError("purpose is missing: send purpose=fine-tune", param="purpose")
    if purpose != "fine-tune":
        raise UnsupportedParameterError("The only purpose served is 'fine-tune'", param="purpose")


def _file_object(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.num_bytes,
        created_at=int(record.created_at),
        filename=record.filename,
        purpose=record.purpose,
    )
