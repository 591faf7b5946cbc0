"""`/v1/fine_tuning/jobs`: train an intervention, and watch it being trained."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from starlette.requests import Request

from reft_client.types import (
    FineTuningCheckpointList,
    FineTuningEventList,
    FineTuningHyperparameters,
    FineTuningJob,
    FineTuningJobList,
    FineTuningJobRequest,
)
from reft_interventions.training import TrainingOptions
from reft_server.errors import InvalidRequestError, ModelNotFoundError, UnsupportedParameterError
from reft_server.fine_tuning.records import JobRecord, page
from reft_server.fine_tuning.service import FineTuning

from ..authentication import Upload
from ..context import Context, Tuning
from ..openapi import JOB_EXAMPLES, JOB_LOOKUP_RESPONSES, JOB_RESPONSES

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_UNSERVED = frozenset({"integrations"})
_METADATA_FILTER = re.compile(r"metadata\[(.+)\]")
_DEFAULT_LR = TrainingOptions().lr
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", summary="Start a job", responses=JOB_RESPONSES)
async def create_job(
    caller: Upload,
    context: Context,
    tuning: Tuning,
    body: Annotated[FineTuningJobRequest, Body(openapi_examples=JOB_EXAMPLES)],
) -> FineTuningJob:
    """Queue a job. It trains in a process of its own, and its intervention is then in the store, tried and callable."""
    for name in body.model_extra or {}:
        if name in _UNSERVED:
            raise UnsupportedParameterError(f"{name} is not served here: leave it out", param=name)
        raise InvalidRequestError(f"{name[:64]!r} is unknown", param=name[:64])
    if body.model not in context.model_names.aliases:
        raise ModelNotFoundError(
            f"The model {body.model!r} can't be trained: this server has {context.model_names.base!r}", param="model"
        )
    return _job(tuning, await tuning.create_job(body, context.model_names.base, caller.tenant.name))


@router.get("", summary="List jobs")
async def list_jobs(
    request: Request, caller: Upload, tuning: Tuning, after: str | None = None, limit: Limit = 20
) -> FineTuningJobList:
    """Newest first; `after=<the last id>` asks for the next page, `metadata[key]=value` for jobs with that value."""
    wanted = {
        found[1]: value for key, value in request.query_params.items() if (found := _METADATA_FILTER.fullmatch(key))
    }
    records = [record for record in tuning.jobs.list(caller.tenant.name) if _has_metadata(record, wanted)]
    chosen, has_more = page(records, after, limit)
    return FineTuningJobList(data=tuple(_job(tuning, record) for record in chosen), has_more=has_more)


@router.get("/{job_id}", summary="Show one job", responses=JOB_LOOKUP_RESPONSES)
async def get_job(caller: Upload, tuning: Tuning, job_id: str) -> FineTuningJob:
    """How far it is, or how it ended."""
    return _job(tuning, tuning.jobs.get(job_id, caller.tenant.name))


@router.post("/{job_id}/cancel", summary="Cancel a job", responses={**JOB_LOOKUP_RESPONSES, 400: JOB_RESPONSES[400]})
async def cancel_job(caller: Upload, tuning: Tuning, job_id: str) -> FineTuningJob:
    """End a job that waits or runs; its process is gone when this answers."""
    return _job(tuning, await tuning.cancel_job(job_id, caller.tenant.name))


@router.get("/{job_id}/events", summary="List a job's events", responses=JOB_LOOKUP_RESPONSES)
async def list_events(
    caller: Upload, tuning: Tuning, job_id: str, after: str | None = None, limit: Limit = 20
) -> FineTuningEventList:
    """Newest first: losses, scores of held-out rows, and how it ended."""
    record = tuning.jobs.get(job_id, caller.tenant.name)
    events = await asyncio.to_thread(tuning.jobs.events, record.id)
    chosen, has_more = page(events, after, limit)
    return FineTuningEventList(data=tuple(chosen), has_more=has_more)


@router.get("/{job_id}/checkpoints", summary="List a job's checkpoints", responses=JOB_LOOKUP_RESPONSES)
async def list_checkpoints(caller: Upload, tuning: Tuning, job_id: str) -> FineTuningCheckpointList:
    """None: a job's checkpoints serve for going on after a restart."""
    tuning.jobs.get(job_id, caller.tenant.name)
    return FineTuningCheckpointList()


def _has_metadata(record: JobRecord, wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= (record.metadata or {}).items()


def _job(tuning: FineTuning, record: JobRecord) -> FineTuningJob:
    options: Mapping[str, Any] = record.options
    finish = tuning.estimated_finish(record.id)
    return FineTuningJob(
        id=record.id,
        created_at=int(record.created_at),
        finished_at=None if record.finished_at is None else int(record.finished_at),
        estimated_finish=None if finish is None else int(finish),
        status=record.status,
        error=record.error,
        model=record.model,
        fine_tuned_model=record.intervention.name if record.intervention else None,
        training_file=record.training_file,
        validation_file=record.validation_file,
        result_files=(record.result_file,) if record.result_file else (),
        hyperparameters=FineTuningHyperparameters(
            n_epochs=options["epochs"],
            batch_size=options["batch_size"],
            learning_rate_multiplier=options["lr"] / _DEFAULT_LR,
        ),
        method=record.method,
        seed=options["seed"],
        trained_tokens=record.trained_tokens,
        metadata=record.metadata,
        options=record.options,
        intervention=record.intervention,
    )
