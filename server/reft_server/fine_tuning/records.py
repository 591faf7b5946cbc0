"""What lies on disk about files and jobs: one JSON record each, written so that a crash leaves the old or the new."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reft_client.types import FineTuningError, JobStatus, TrainedIntervention
from reft_interventions.errors import StoreError
from reft_interventions.store import durable

logger = logging.getLogger(__name__)

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})


class Record(BaseModel):
    """What files and jobs share.

    Args:
        owner: whom the record belongs to; empty until there are keys.
        created_at: Unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    created_at: float = Field(default_factory=time.time)
    owner: str = ""


class FileRecord(Record):
    """An uploaded file, or one that a job wrote. `num_rows` is 0 for the latter."""

    filename: str
    num_bytes: int
    purpose: Literal["fine-tune", "fine-tune-results"] = "fine-tune"
    num_rows: int = 0


class JobRecord(Record):
    """A job and how far it came.

    Args:
        name: the intervention's.
        method: as it was asked for, for the answer.
        options: every field of the trainer's options.
        num_restarts: of the server, while this job ran.
        result_file: id of the file with losses by step.
    """

    status: JobStatus = "queued"
    model: str
    name: str
    training_file: str
    validation_file: str | None = None
    recipe: str | None = None
    method: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str] | None = None
    num_restarts: int = 0
    finished_at: float | None = None
    error: FineTuningError | None = None
    trained_tokens: int | None = None
    result_file: str | None = None
    intervention: TrainedIntervention | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


AnyRecord = TypeVar("AnyRecord", bound=Record)


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(12)}"


def write_record(path: Path, record: Record) -> None:
    """Write durably; the folder must exist.

    Raises:
        StoreError: the disk failed.
    """
    temporary = durable.temporary_path(path.parent, ".tmp")
    try:
        temporary.write_text(record.model_dump_json(), encoding="utf-8")
        durable.sync(temporary)
        durable.move_file(temporary, path)
    except OSError as error:
        raise StoreError(f"{path.name} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record at `path`; None, and a line in the log, where it can't be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        logger.error("fine_tuning_record_damaged path=%s reason=%s", path, type(error).__name__)
        return None


class HasId(Protocol):
    """Anything that a list can be cut at."""

    @property
    def id(self) -> str: ...


AnyItem = TypeVar("AnyItem", bound=HasId)


def page(items: Sequence[AnyItem], after: str | None, limit: int) -> tuple[Sequence[AnyItem], bool]:
    """The `limit` items behind the one with the id `after` (None = from the first), and whether there are more.

    An id that is gone ends the list: the caller has seen what was behind it, or starts over.
    """
    start = 0
    if after is not None:
        start = next((index + 1 for index, item in enumerate(items) if item.id == after), len(items))
    return items[start : start + limit], start + limit < len(items)


def mend_lines(path: Path) -> None:
    """End a last line that a crash cut off, so that the next one begins on its own."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
