"""Files and fine-tuning jobs, in OpenAI's shapes; `reft` is the method that is ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .base import FiniteFloat, Int, RequestModel, ResponseModel, Text

__all__ = [
    "FileDeleted",
    "FileList",
    "FileObject",
    "FineTuningCheckpointList",
    "FineTuningError",
    "FineTuningEvent",
    "FineTuningEventList",
    "FineTuningHyperparameters",
    "FineTuningJob",
    "FineTuningJobList",
    "FineTuningJobRequest",
    "FineTuningMethod",
    "JobStatus",
    "ReftMethod",
    "SupervisedMethod",
    "TrainedIntervention",
]

JobStatus = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
]


class FileObject(ResponseModel):
    """A file: training data that was uploaded, or what a job measured. Times are Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class FileList(ResponseModel):
    """A page of files; `after=last_id` asks for the next one."""

    object: Literal["list"] = "list"
    data: tuple[FileObject, ...] = ()
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(ResponseModel):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FineTuningHyperparameters(RequestModel):
    """OpenAI's; `auto` and absence mean the server's defaults."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Literal["auto"] | Annotated[Int, Field(ge=1)] | None = None
    batch_size: Literal["auto"] | Annotated[Int, Field(ge=1)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[FiniteFloat, Field(gt=0)] | None = None


class SupervisedMethod(RequestModel):
    """OpenAI's `supervised`, served as ReFT with its defaults."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: FineTuningHyperparameters | None = None


class ReftMethod(RequestModel):
    """ReFT with everything that `reft-train` can set.

    `name` is the intervention's exact name, `recipe` one of the trainer's, and `hyperparameters` are the fields of
    `reft_interventions.training.TrainingOptions`, which win over the recipe's.
    """

    model_config = ConfigDict(extra="forbid")

    name: Text | None = None
    recipe: Text | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class FineTuningMethod(RequestModel):
    """How to train: `reft`, or `supervised` as OpenAI's SDK types it."""

    type: Text
    supervised: SupervisedMethod | None = None
    reft: ReftMethod | None = None


class FineTuningJobRequest(RequestModel):
    """Start a job; `training_file` and `validation_file` are ids of uploaded files."""

    model: Text
    training_file: Text
    validation_file: Text | None = None
    hyperparameters: FineTuningHyperparameters | None = None
    method: FineTuningMethod | None = None
    suffix: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[Int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: Metadata | None = None


class FineTuningError(ResponseModel):
    """Why a job failed; `code` is one of the server's error codes."""

    code: str
    message: str
    param: str | None = None


class TrainedIntervention(ResponseModel):
    """What a job stored."""

    name: str
    version: int
    content_hash: str


class FineTuningJob(ResponseModel):
    """A job. `fine_tuned_model` may be sent as `model` or `intervention` once it is there.

    `hyperparameters` say what was used, in OpenAI's words; `options` say all of it, in the trainer's. Times are Unix
    seconds.
    """

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    status: JobStatus
    error: FineTuningError | None = None
    model: str
    fine_tuned_model: str | None = None
    training_file: str
    validation_file: str | None = None
    result_files: tuple[str, ...] = ()
    hyperparameters: FineTuningHyperparameters
    method: dict[str, Any]
    seed: int
    trained_tokens: int | None = None
    organization_id: str = ""
    integrations: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    intervention: TrainedIntervention | None = None


class FineTuningJobList(ResponseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: tuple[FineTuningJob, ...] = ()
    has_more: bool = False


class FineTuningEvent(ResponseModel):
    """Something that happened to a job; `metrics` events have numbers in `data`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"] = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = Field(default_factory=dict)


class FineTuningEventList(ResponseModel):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: tuple[FineTuningEvent, ...] = ()
    has_more: bool = False


class FineTuningCheckpointList(ResponseModel):
    """Always empty: checkpoints serve for going on after a restart, and are no models."""

    object: Literal["list"] = "list"
    data: tuple[dict[str, Any], ...] = ()
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
