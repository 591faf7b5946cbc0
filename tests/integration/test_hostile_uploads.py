"""Hostile and broken uploads: a named error each, and the store stays byte for byte what it was."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors

from reft_interventions import FileLimits, InterventionSet, dumps
from reft_interventions.errors import (
    InterventionBaseMismatchError,
    InterventionFileError,
    InterventionFileTooLargeError,
    InterventionManifestError,
    InterventionSelfTestError,
    InterventionShapeError,
    InterventionValueError,
    InvalidInterventionNameError,
    ReftError,
    UnsupportedComponentError,
)
from reft_interventions.store import InterventionStore
from reft_server.engine.pool import InterventionPool
from reft_server.registry import Registry
from tests.intervention_sets import BASE, make_set
from tests.self_test_engine import SelfTestEngine

GOOD = dumps(make_set(1))
LIMITS = FileLimits(max_file_bytes=1 << 20, max_header_bytes=1 << 16, max_tensors=64)


def claim(length: int) -> bytes:
    return length.to_bytes(8, "little") + b"{" + b" " * 64


def unchanged(_: object) -> None: ...


def rebuilt(
    change_tensors: Callable[[dict[str, torch.Tensor]], object] = unchanged,
    change_manifest: Callable[[dict[str, Any]], object] = unchanged,
) -> bytes:
    """The good file with its tensors or its manifest changed, past every check of our own writer."""
    original = make_set(1)
    tensors = {name: tensor.clone() for name, tensor in original.named_tensors().items()}
    manifest = original.manifest.model_dump(mode="json")
    change_tensors(tensors)
    change_manifest(manifest)
    return save_tensors(tensors, {"reft": json.dumps(manifest)})


def spec_with(**fields: Any) -> bytes:
    return rebuilt(change_manifest=lambda manifest: manifest["interventions"][0].update(fields))


def tensor_set(name: str, value: torch.Tensor) -> bytes:
    return rebuilt(lambda tensors: tensors.update({f"sites.0.{name}": value}))


def filled(name: str, value: float) -> bytes:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"sites.0.{name}"].reshape(-1)[3] = value

    return rebuilt(change)


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sites.0.rotate_layer", bytes(64 << 20))
    return buffer.getvalue()


class Exploit:
    """Unpickling this would raise the flag."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import builtins; builtins.reft_was_exploited = True",)


def overlapping() -> bytes:
    """Two tensors over the same bytes."""
    header_length = int.from_bytes(GOOD[:8], "little")
    header = json.loads(GOOD[8 : 8 + header_length])
    names = sorted(name for name in header if name != "__metadata__")
    for name in names:
        header[name]["data_offsets"] = [0, header[name]["data_offsets"][1] - header[name]["data_offsets"][0]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + GOOD[8 + header_length :]


HOSTILE: dict[str, tuple[Callable[[], bytes], type[ReftError]]] = {
    "empty": (lambda: b"", InterventionFileError),
    "one_byte": (lambda: b"\x00", InterventionFileError),
    "truncated_length": (lambda: GOOD[:7], InterventionFileError),
    "truncated_header": (lambda: GOOD[:100], InterventionFileError),
    "truncated_tensors": (lambda: GOOD[:-1], InterventionFileError),
    "trailing_bytes": (lambda: GOOD + b"\x00", InterventionFileError),
    "header_claims_1_gb": (lambda: claim(1 << 30), InterventionFileTooLargeError),
    "header_claims_everything": (lambda: b"\xff" * 8 + b"{}", InterventionFileTooLargeError),
    "header_not_json": (lambda: (8).to_bytes(8, "little") + b"{nonsense", InterventionFileError),
    "header_nested": (lambda: (50_000).to_bytes(8, "little") + b'{"a":' * 10_000, InterventionFileError),
    "overlapping_tensors": (overlapping, InterventionFileError),
    "pickle": (lambda: pickle.dumps({"weight": Exploit()}), InterventionFileError),
    "torch_save": (torch_saved, InterventionFileError),
    "zip_bomb": (zip_bomb, InterventionFileError),
    "gzip_bomb": (lambda: gzip.compress(bytes(16 << 20)), InterventionFileError),
    "git_lfs_pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", InterventionFileError),
    "html_error_page": (lambda: b"<!DOCTYPE html><html>404</html>", InterventionFileError),
    "larger_than_the_limit": (lambda: GOOD + bytes(LIMITS.max_file_bytes), InterventionFileTooLargeError),
    "too_many_tensors": (
        lambda: rebuilt(lambda tensors: tensors.update({f"sites.9.{i}": torch.ones(1) for i in range(65)})),
        InterventionFileTooLargeError,
    ),
    "no_manifest": (lambda: save_tensors(make_set(1).named_tensors()), InterventionManifestError),
    "manifest_not_json": (
        lambda: save_tensors(make_set(1).named_tensors(), {"reft": "{"}),
        InterventionManifestError,
    ),
    "manifest_unknown_field": (
        lambda: rebuilt(change_manifest=lambda manifest: manifest.update(on_load="import os")),
        InterventionManifestError,
    ),
    "manifest_of_the_future": (
        lambda: rebuilt(change_manifest=lambda manifest: manifest.update(format_version=2)),
        InterventionManifestError,
    ),
    "unknown_formula": (lambda: spec_with(formula="os.system"), InterventionManifestError),
    "unknown_act": (lambda: spec_with(act="eval"), InterventionManifestError),
    "unknown_component": (lambda: spec_with(component="__class__"), UnsupportedComponentError),
    "bad_positions": (lambda: spec_with(positions="f1+f2+x"), InterventionManifestError),
    "layer_out_of_range": (lambda: spec_with(layer=4), InterventionManifestError),
    "negative_layer": (lambda: spec_with(layer=-1), InterventionManifestError),
    "wrong_rank": (lambda: spec_with(low_rank_dimension=3), InterventionShapeError),
    "huge_rank": (lambda: spec_with(low_rank_dimension=10**9), InterventionManifestError),
    "wrong_shape": (lambda: tensor_set("learned_source_weight", torch.ones(2, 8)), InterventionShapeError),
    "transposed": (lambda: tensor_set("rotate_layer", torch.eye(16)[:2].contiguous()), InterventionShapeError),
    "wrong_dtype": (
        lambda: tensor_set("learned_source_bias", torch.ones(2, dtype=torch.int64)),
        InterventionShapeError,
    ),
    "missing_tensor": (lambda: rebuilt(lambda tensors: tensors.pop("sites.0.rotate_layer")), InterventionManifestError),
    "extra_tensor": (
        lambda: rebuilt(lambda tensors: tensors.update({"sites.0.payload": torch.ones(4)})),
        InterventionManifestError,
    ),
    "path_as_tensor_name": (
        lambda: rebuilt(lambda tensors: tensors.update({"sites.0.../../../etc/passwd": torch.ones(4)})),
        InterventionManifestError,
    ),
    "nan": (lambda: filled("learned_source_weight", float("nan")), InterventionValueError),
    "infinity": (lambda: filled("learned_source_weight", float("inf")), InterventionValueError),
    "overflows_float32": (
        lambda: tensor_set("learned_source_bias", torch.full((2,), 1e300, dtype=torch.float64)),
        InterventionValueError,
    ),
    "collapsed_rotation": (lambda: tensor_set("rotate_layer", torch.zeros(16, 2)), InterventionValueError),
    "skewed_rotation": (lambda: filled("rotate_layer", 0.9), InterventionValueError),
    "other_base_weights": (
        lambda: dumps(make_set(1, base=replace(BASE, fingerprint="other"))),
        InterventionBaseMismatchError,
    ),
    "other_hidden_size": (lambda: dumps(make_set(1, base=replace(BASE, hidden_size=32))), InterventionShapeError),
    "other_num_layers": (lambda: dumps(make_set(1, base=replace(BASE, num_layers=40))), InterventionShapeError),
}


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file by its path; SQLite's shared memory is left out, where mere readers leave marks."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def attack(root: Path, data: bytes, name: str, *, engine: SelfTestEngine) -> ReftError:
    """Upload `data` to a store that holds a good set; check that nothing changed, and return the error."""
    original: InterventionSet = make_set(7)

    async def scenario() -> ReftError:
        registry = Registry(InterventionStore(root), InterventionPool(1 << 20), engine, BASE, LIMITS)
        try:
            path = registry.new_upload_path()
            path.write_bytes(dumps(original))
            failure, engine.failure = engine.failure, None
            await registry.add(path, "victim")
            engine.failure = failure
            before, before_resolved = snapshot(root.parent), await registry.resolve("victim")
            upload = registry.new_upload_path()
            upload.write_bytes(data)
            with pytest.raises(ReftError) as caught:
                await registry.add(upload, name)
            assert snapshot(root.parent) == before
            assert [stored.reference for stored in registry.list()] == ["victim@1"]
            assert (await registry.resolve("victim")).folded is before_resolved.folded
            assert registry.stats().pool.num_sets == 1
            return caught.value
        finally:
            await registry.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", ["newcomer", "victim"])
def test_hostile_upload_is_a_named_error_and_stores_nothing(tmp_path: Path, case: str, name: str) -> None:
    make_data, expected = HOSTILE[case]
    engine = SelfTestEngine()
    error = attack(tmp_path / "store", make_data(), name, engine=engine)
    assert type(error) is expected
    assert error.message
    assert len(error.message) < 500
    assert str(tmp_path) not in error.message, "the error tells where the store lies"
    assert len(engine.tried) == 1, "the engine tried a set that should have been refused before"


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc/cron.d/x", "..", "", "con", "a\x00b", "A", "victim@2"])
def test_path_tricks_in_the_name_are_refused(tmp_path: Path, name: str) -> None:
    error = attack(tmp_path / "store", GOOD, name, engine=SelfTestEngine())
    assert type(error) is InvalidInterventionNameError


@pytest.mark.parametrize("name", ["newcomer", "victim"])
def test_set_that_fails_its_self_test_is_refused(tmp_path: Path, name: str) -> None:
    engine = SelfTestEngine(InterventionSelfTestError("the edit changes nothing"))
    error = attack(tmp_path / "store", GOOD, name, engine=engine)
    assert type(error) is InterventionSelfTestError
    assert len(engine.tried) == 2


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    import builtins

    attack(tmp_path / "store", pickle.dumps(Exploit()), "newcomer", engine=SelfTestEngine())
    assert not hasattr(builtins, "reft_was_exploited")


@pytest.mark.parametrize("case", ["header_claims_1_gb", "header_claims_everything", "zip_bomb", "gzip_bomb"])
def test_a_lying_file_costs_little_memory(tmp_path: Path, case: str) -> None:
    data = HOSTILE[case][0]()
    attack(tmp_path / "warm", data, "newcomer", engine=SelfTestEngine())
    tracemalloc.start()
    try:
        attack(tmp_path / "store", data, "newcomer", engine=SelfTestEngine())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_every_prefix_of_a_good_file_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        registry = Registry(
            InterventionStore(tmp_path / "store"), InterventionPool(1 << 20), SelfTestEngine(), BASE, LIMITS
        )
        try:
            for length in range(0, len(GOOD), 41):
                upload = registry.new_upload_path()
                upload.write_bytes(GOOD[:length])
                with pytest.raises((InterventionFileError, InterventionFileTooLargeError)):
                    await registry.add(upload, "newcomer")
            assert registry.list() == ()
        finally:
            await registry.close()

    asyncio.run(scenario())
