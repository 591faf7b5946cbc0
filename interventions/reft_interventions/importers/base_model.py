"""What an imported set says of its base model: from a folder, a hub id, or the options alone."""

from __future__ import annotations

from pathlib import Path

from ..errors import InterventionBaseMismatchError, InterventionImportError, TrainingError
from ..manifest import BaseModelRef
from ..model_tree import fingerprint
from ..training.base_model import locate_model
from ..user_folders import DEFAULT_MODEL
from .options import ImportOptions, Missing

_WEIGHT_FILES = ("*.safetensors",)


def resolve_base(options: ImportOptions, hidden_size: int | None, missing: Missing) -> BaseModelRef | None:
    """The manifest's `base_model`; None, with an entry in `missing`, where it can't be known.

    A folder, the default model's name, or (without `num_layers`) a hub id is looked up: sizes from its configuration,
    the fingerprint from its weights where there are any. With `num_layers` an id is recorded as it stands.

    Args:
        options: `base_model`, `num_layers` and `hidden_size`.
        hidden_size: the tensors'; None where all of them are for other rows.
        missing: where to ask for what is not given.

    Raises:
        InterventionImportError: the model can't be found.
        InterventionBaseMismatchError: its hidden size is not the tensors'.
    """
    name = options.base_model
    if name is None:
        missing.add("--base-model", f"a folder, a Hugging Face id, or {DEFAULT_MODEL}")
        return None
    is_local = Path(name).expanduser().is_dir() or name.lower() == DEFAULT_MODEL
    if not is_local and options.num_layers is not None:
        size = hidden_size or options.hidden_size
        if size is None:
            missing.add("--hidden-size", "the tensors are for rows of another size")
            return None
        return BaseModelRef(id=name, hidden_size=size, num_layers=options.num_layers)
    base = _look_up(name)
    if options.num_layers not in (None, base.num_layers):
        raise InterventionBaseMismatchError(
            f"{base.id} has {base.num_layers} layers, not {options.num_layers}", param="num_layers"
        )
    if hidden_size not in (None, base.hidden_size):
        raise InterventionBaseMismatchError(
            f"the checkpoint was trained on a model with hidden size {hidden_size}; {base.id} has "
            f"{base.hidden_size}, so it is another base model",
            param="base_model",
        )
    return base


def num_layers_of(options: ImportOptions) -> int | None:
    """How many layers the base model has, where that can be said without the network."""
    if options.num_layers is not None or options.base_model is None:
        return options.num_layers
    is_folder = Path(options.base_model).expanduser().is_dir()
    if not is_folder and options.base_model.lower() != DEFAULT_MODEL:
        return None
    from transformers import AutoConfig  # takes seconds, and most imports need none

    return int(AutoConfig.from_pretrained(locate_model(options.base_model)[0]).get_text_config().num_hidden_layers)


def _look_up(name: str) -> BaseModelRef:
    try:
        source, model_id = locate_model(name)
    except TrainingError as error:
        raise InterventionImportError(error.message, param="base_model") from error
    from transformers import AutoConfig, PretrainedConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
        text = config.get_text_config()
        weights = _fingerprint(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InterventionImportError(
            f"the base model {name!r} can't be read ({first_line}); give a folder, or its --num-layers to record the "
            "id without looking it up",
            param="base_model",
        ) from error
    return BaseModelRef(
        id=model_id,
        fingerprint=weights,
        hidden_size=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
    )


def _fingerprint(source: str) -> str:
    """Of a local folder's weights; "" where there are none, or the model is a hub id whose weights are not here."""
    folder = Path(source)
    if not folder.is_dir() or not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        return ""
    from transformers import AutoModelForCausalLM

    return fingerprint(AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True))
