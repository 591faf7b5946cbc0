"""Uploaded training data, and what jobs measured: a record and a data file each."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import BinaryIO

from reft_interventions.errors import StoreError, TrainingError
from reft_interventions.store import durable
from reft_interventions.training import check_row
from reft_server.errors import FileQuotaError, InvalidTrainingFileError, UnknownFileError

from .records import FileRecord, new_id, read_record, write_record
from .settings import FineTuningSettings

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 1 << 20
_NUM_CONCURRENT_CHECKS = 2


class Files:
    """The files in one folder; used from one event loop.

    Args:
        folder: holds `<id>.json` and `<id>.jsonl` or `<id>.csv`; created by `open`.
    """

    def __init__(self, folder: Path, settings: FineTuningSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._records: dict[str, FileRecord] = {}
        self._check_slots = asyncio.Semaphore(_NUM_CONCURRENT_CHECKS)

    @property
    def folder(self) -> Path:
        return self._folder

    def open(self) -> None:
        """Read the records; what no record names is removed.

        Raises:
            OSError: the folder can't be used.
        """
        durable.make_folder(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            record = read_record(path, FileRecord)
            if record is not None and self.path(record).is_file():
                self._records[record.id] = record
        for path in self._folder.iterdir():
            if path.suffix != ".json" and path.stem not in self._records:
                path.unlink()

    def new_upload_path(self) -> Path:
        """Where to write a file before `add`; not created yet."""
        return durable.temporary_path(self._folder, ".upload")

    async def add(self, upload: Path, filename: str, owner: str = "") -> FileRecord:
        """Check a file to train on, line by line, and keep it; `upload` is gone afterwards in every case.

        Raises:
            InvalidTrainingFileError: a line has the wrong form.
            FileQuotaError: there are too many files, or too many bytes.
            StoreError: the disk failed.
        """
        try:
            self.check_quota(owner, upload.stat().st_size)
            async with self._check_slots:
                num_rows = await asyncio.to_thread(check_rows, upload)
            record = FileRecord(
                id=new_id("file"),
                filename=filename,
                num_bytes=upload.stat().st_size,
                num_rows=num_rows,
                owner=owner,
            )
            self.check_quota(owner, record.num_bytes)
            await self._keep(upload, record)
        finally:
            upload.unlink(missing_ok=True)
        return record

    async def add_result(self, content: bytes, filename: str, owner: str) -> FileRecord:
        """Keep what a job measured; the quotas are for uploads.

        Raises:
            StoreError: the disk failed.
        """
        record = FileRecord(
            id=new_id("file"), filename=filename, num_bytes=len(content), purpose="fine-tune-results", owner=owner
        )
        upload = self.new_upload_path()
        try:
            await asyncio.to_thread(upload.write_bytes, content)
            await self._keep(upload, record)
        except OSError as error:
            raise StoreError(f"the results can't be written: {error.strerror}") from error
        finally:
            upload.unlink(missing_ok=True)
        return record

    def get(self, file_id: str, owner: str = "", *, param: str = "file_id") -> FileRecord:
        """The record of a file; `param` is what an error calls the id.

        Raises:
            UnknownFileError: there is none with this id.
        """
        record = self._records.get(file_id)
        if record is None or record.owner != owner:
            raise UnknownFileError(f"There is no file {file_id[:64]!r}", param=param)
        return record

    def list(self, owner: str = "") -> list[FileRecord]:
        """Every file, newest first."""
        mine = (record for record in self._records.values() if record.owner == owner)
        return sorted(mine, key=lambda record: (record.created_at, record.id), reverse=True)

    def path(self, record: FileRecord) -> Path:
        """Where the content lies."""
        return self._folder / f"{record.id}{'.jsonl' if record.purpose == 'fine-tune' else '.csv'}"

    def open_content(self, record: FileRecord) -> BinaryIO:
        """Open the content; a later delete does not disturb it.

        Raises:
            StoreError: it is lost.
        """
        try:
            return self.path(record).open("rb")
        except OSError as error:
            raise StoreError(f"{record.id} can't be read: {error.strerror}") from error

    async def delete(self, record: FileRecord) -> None:
        """Remove a file. Without its record the content is removed at the next start at the latest.

        Raises:
            StoreError: the disk failed.
        """
        self._records.pop(record.id, None)
        try:
            await asyncio.to_thread(self._remove, record)
        except OSError as error:
            raise StoreError(f"{record.id} can't be deleted: {error.strerror}") from error

    def check_quota(self, owner: str = "", num_bytes: int = 0) -> None:
        """Whether one more upload of this owner, of this size, has room.

        Raises:
            FileQuotaError: it has not.
        """
        uploads = [record.num_bytes for record in self.list(owner) if record.purpose == "fine-tune"]
        if len(uploads) >= self._settings.max_files:
            raise FileQuotaError(f"There are {len(uploads)} files already; delete some", param="file")
        if sum(uploads) + num_bytes > self._settings.max_total_bytes:
            raise FileQuotaError(
                f"The files would have more than {self._settings.max_total_bytes} bytes together; delete some",
                param="file",
            )

    async def _keep(self, upload: Path, record: FileRecord) -> None:
        # In the dictionary at once: the quota of the next upload counts it.
        self._records[record.id] = record
        try:
            await asyncio.to_thread(self._write, upload, record)
        except BaseException:
            del self._records[record.id]
            raise
        logger.info("file_stored id=%s purpose=%s bytes=%d", record.id, record.purpose, record.num_bytes)

    def _write(self, upload: Path, record: FileRecord) -> None:
        try:
            durable.sync(upload)
            durable.move_file(upload, self.path(record))
        except OSError as error:
            raise StoreError(f"{record.id} can't be written: {error.strerror}") from error
        write_record(self._record_path(record), record)

    def _remove(self, record: FileRecord) -> None:
        self._record_path(record).unlink(missing_ok=True)
        self.path(record).unlink(missing_ok=True)

    def _record_path(self, record: FileRecord) -> Path:
        return self._folder / f"{record.id}.json"


def check_rows(path: Path) -> int:
    """Check the form of every line of a file to train on; returns how many rows it has.

    Raises:
        InvalidTrainingFileError: a line is wrong (the message has its number and nothing of it), or there is none.
    """
    num_rows = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise InvalidTrainingFileError(f"line {number} is longer than {_MAX_LINE_BYTES} bytes", param="file")
            if line.strip():
                _check_line(number, line)
                num_rows += 1
    if not num_rows:
        raise InvalidTrainingFileError("The file holds no rows", param="file")
    return num_rows


def _check_line(number: int, line: bytes) -> None:
    try:
        row = check_row(f"line {number}", line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidTrainingFileError(f"line {number}: not UTF-8 (byte {error.start})", param="file") from error
    except TrainingError as error:
        raise InvalidTrainingFileError(error.message, param="file") from error
    messages = row.get("messages", ())
    for field in _UNSERVED_FIELDS:
        if field in row or any(field in message for message in messages):
            raise InvalidTrainingFileError(f"line {number}: {field} is not served; leave it out", param="file")


_UNSERVED_FIELDS = ("tools", "tool_calls", "functions", "function_call", "parallel_tool_calls", "weight")
"""Of OpenAI's format; to train as if they were not there would teach something else."""
