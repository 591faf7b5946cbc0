"""The root of the project's one error tree, and the errors of interventions."""

from __future__ import annotations

from typing import ClassVar

_MAX_MESSAGE_LENGTH = 2000
_MAX_PARAM_LENGTH = 200


class ReftError(Exception):
    """Anything this project raises on purpose.

    `code` is stable and machine-readable; the message says what is wrong and what to do about it, and is safe
    to show to the caller. `param` names the field of the request or file at fault, where there is one. Both are one
    bounded, printable line whatever is put into them: what a client chose can't forge a log line or steer a terminal.
    """

    code: ClassVar[str] = "reft_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.message = _one_line(message, _MAX_MESSAGE_LENGTH)
        self.param = None if param is None else _one_line(param, _MAX_PARAM_LENGTH)
        super().__init__(self.message)


def _one_line(text: str, max_length: int) -> str:
    if not text.isprintable():  # control characters, line ends, directions of writing, halves of surrogate pairs
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= max_length else f"{text[:max_length]}…"


class InterventionError(ReftError):
    """An intervention set, its file or its name is at fault."""

    code = "invalid_intervention"


class InterventionFileError(InterventionError):
    """The bytes are not an intervention file: truncated, a hostile header, not safetensors, no manifest."""

    code = "invalid_intervention_file"


class InterventionFileTooLargeError(InterventionError):
    """The file, its header or its number of tensors exceeds a limit."""

    code = "intervention_file_too_large"


class InterventionManifestError(InterventionError):
    """The manifest breaks the format: unknown formula, bad positions, missing tensors."""

    code = "invalid_intervention_manifest"


class InterventionShapeError(InterventionError):
    """A tensor's shape or dtype disagrees with the manifest or with the base model."""

    code = "invalid_intervention_shape"


class InterventionValueError(InterventionError):
    """A tensor holds NaN or infinity, or an R that is not orthonormal or has collapsed."""

    code = "invalid_intervention_values"


class InterventionSubspaceError(InterventionError):
    """A choice of rank dimensions that the set does not have: out of range, twice, an unknown name, no low rank."""

    code = "invalid_subspaces"


class InterventionSourceError(InterventionError):
    """A source prompt that the set needs and lacks, takes none of, or whose edited tokens don't match the prompt's."""

    code = "invalid_intervention_source"


class InterventionBaseMismatchError(InterventionError):
    """The set was trained for another base model."""

    code = "intervention_base_mismatch"


class InterventionSelfTestError(InterventionError):
    """A trial forward pass showed that the edit does nothing, or touches rows that it must not touch."""

    code = "intervention_self_test_failed"


class UnsupportedComponentError(InterventionError):
    """The model has no such component, or it can't be edited yet."""

    code = "unsupported_component"


class InterventionImportError(InterventionError):
    """A foreign checkpoint can't be read, can't be expressed in our format, or does not record what we need."""

    code = "intervention_import_failed"


class InterventionExportError(InterventionError):
    """The set can't be expressed in the other library's format."""

    code = "intervention_export_failed"


class InvalidInterventionNameError(InterventionError):
    """A name, version or reference that breaks the naming rules."""

    code = "invalid_intervention_name"


class InterventionNotFoundError(InterventionError):
    """No such name, or no such version under it."""

    code = "intervention_not_found"


class InterventionConflictError(InterventionError):
    """The store holds something else under that name, or another writer was first."""

    code = "intervention_conflict"


class InterventionPreconditionError(InterventionError):
    """The name does not hold what the upload was meant to replace."""

    code = "intervention_precondition_failed"


class InterventionQuotaError(InterventionError):
    """The namespace has no room for another set, or for this one's bytes."""

    code = "storage_quota_exceeded"


class StoreError(ReftError):
    """The store's folder or its index can't be used."""

    code = "store_error"


class AdapterError(ReftError):
    """A LoRA can't be merged into the base model."""

    code = "adapter_error"


class TrainingError(ReftError):
    """Training can't start or go on: bad data, bad options, a loss that is not finite."""

    code = "training_error"
