"""The corpus of hostile intervention files, made by code: what each holds, and the error that must name it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from reft_interventions import FileLimits, dumps
from reft_interventions.errors import (
    InterventionBaseMismatchError,
    InterventionFileError,
    InterventionFileTooLargeError,
    InterventionManifestError,
    InterventionShapeError,
    InterventionValueError,
    ReftError,
    UnsupportedComponentError,
)
from tests.intervention_sets import BASE, make_set

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


HEADER_TEXT = GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")].decode().rstrip()
ENTRY = json.dumps(json.loads(HEADER_TEXT)["sites.0.rotate_layer"])


def with_header(text: bytes) -> bytes:
    """The good file's tensors behind another header."""
    return len(text).to_bytes(8, "little") + text + GOOD[8 + int.from_bytes(GOOD[:8], "little") :]


def edited(change: Callable[[str], str]) -> bytes:
    """The good file with its header's text changed."""
    return with_header(change(HEADER_TEXT).encode())


def edited_json(change: Callable[[dict[str, Any]], object]) -> bytes:
    header = json.loads(HEADER_TEXT)
    change(header)
    return with_header(json.dumps(header).encode())


def entry_with(**fields: Any) -> bytes:
    return edited_json(lambda header: header["sites.0.rotate_layer"].update(fields))


def manifest_text(change: Callable[[str], str]) -> bytes:
    """The good file with its manifest's text changed."""

    def change_header(header: dict[str, Any]) -> None:
        header["__metadata__"]["reft"] = change(header["__metadata__"]["reft"])

    return edited_json(change_header)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("../../etc/cron.d/x")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"x" * 5))
    return buffer.getvalue()


_BY_ERROR: Mapping[type[ReftError], Mapping[str, Callable[[], bytes]]] = {
    InterventionFileError: {
        "empty": lambda: b"",
        "one_byte": lambda: b"\x00",
        "truncated_length": lambda: GOOD[:7],
        "truncated_header": lambda: GOOD[:100],
        "truncated_tensors": lambda: GOOD[:-1],
        "trailing_bytes": lambda: GOOD + b"\x00",
        "header_not_json": lambda: (8).to_bytes(8, "little") + b"{nonsense",
        "header_nested": lambda: (50_000).to_bytes(8, "little") + b'{"a":' * 10_000,
        "overlapping_tensors": overlapping,
        "pickle": lambda: pickle.dumps({"weight": Exploit()}),
        "torch_save": torch_saved,
        "zip_bomb": zip_bomb,
        "gzip_bomb": lambda: gzip.compress(bytes(16 << 20)),
        "git_lfs_pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "html_error_page": lambda: b"<!DOCTYPE html><html>404</html>",
        "utf16_header": lambda: with_header(HEADER_TEXT.encode("utf-16-le")),
        "utf8_mark_before_header": lambda: with_header(b"\xef\xbb\xbf" + HEADER_TEXT.encode()),
        "invalid_utf8_in_header": lambda: with_header(HEADER_TEXT.encode().replace(b"sites", b"s\xfftes")),
        "two_documents_in_header": lambda: with_header(HEADER_TEXT.encode() + b"{}"),
        "header_is_a_list": lambda: with_header(b"{}".replace(b"{}", b"[]")),
        "tensor_twice": lambda: edited(lambda text: text[:-1] + ',"sites.0.rotate_layer":' + ENTRY + "}"),
        "tensor_twice_by_escape": lambda: edited(
            lambda text: text[:-1] + ',"\\u0073ites.0.rotate_layer":' + ENTRY + "}"
        ),
        "metadata_twice": lambda: edited(lambda text: text[:-1] + ',"__metadata__":{"reft":"{}"}}'),
        "field_of_an_entry_twice": lambda: edited(lambda text: text.replace('"dtype":', '"dtype":"F64","dtype":', 1)),
        "extra_field_in_an_entry": lambda: edited(
            lambda text: text.replace('"dtype":', '"path":"/etc/passwd","dtype":', 1)
        ),
        "extra_metadata": lambda: edited(lambda text: text.replace('"reft":', '"exec":"os.system","reft":', 1)),
        "metadata_is_a_number": lambda: edited_json(lambda header: header.update(__metadata__=1)),
        "manifest_is_not_a_string": lambda: edited_json(lambda header: header.update(__metadata__={"reft": {}})),
        "negative_offset": lambda: entry_with(data_offsets=[-64, 64]),
        "offset_beyond_64_bits": lambda: entry_with(data_offsets=[0, 1 << 64]),
        "offset_beyond_the_file": lambda: entry_with(data_offsets=[0, 1 << 40]),
        "offsets_reversed": lambda: entry_with(data_offsets=[128, 0]),
        "offset_is_a_float": lambda: entry_with(data_offsets=[0.0, 128.0]),
        "offset_is_true": lambda: entry_with(data_offsets=[False, True]),
        "offset_is_a_string": lambda: entry_with(data_offsets=["0", "128"]),
        "three_offsets": lambda: entry_with(data_offsets=[0, 64, 128]),
        "shape_overflows": lambda: entry_with(shape=[1 << 32, 1 << 32]),
        "shape_beyond_python_ints": lambda: edited(
            lambda text: text.replace('"shape":[', '"shape":[' + "9" * 5000 + ",", 1)
        ),
        "negative_shape": lambda: entry_with(shape=[-2, -16]),
        "deep_shape": lambda: entry_with(shape=[1] * 1000),
        "tar": tar,
        "zip_after_a_good_file": lambda: GOOD + zip_bomb(),
        "script": lambda: b"#!/bin/sh\nrm -rf /\n",
    },
    InterventionFileTooLargeError: {
        "header_claims_1_gb": lambda: claim(1 << 30),
        "header_claims_everything": lambda: b"\xff" * 8 + b"{}",
        "larger_than_the_limit": lambda: GOOD + bytes(LIMITS.max_file_bytes),
        "too_many_tensors": lambda: rebuilt(
            lambda tensors: tensors.update({f"sites.9.{i}": torch.ones(1) for i in range(65)})
        ),
        "elf": lambda: b"\x7fELF\x02\x01\x01" + bytes(100),
        "gguf": lambda: b"GGUF\x03\x00\x00\x00" + bytes(100),
        "numpy": lambda: b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}" + bytes(100),
    },
    InterventionManifestError: {
        "no_manifest": lambda: save_tensors(make_set(1).named_tensors()),
        "manifest_not_json": lambda: save_tensors(make_set(1).named_tensors(), {"reft": "{"}),
        "manifest_unknown_field": lambda: rebuilt(
            change_manifest=lambda manifest: manifest.update(on_load="import os")
        ),
        "manifest_of_the_future": lambda: rebuilt(change_manifest=lambda manifest: manifest.update(format_version=2)),
        "unknown_formula": lambda: spec_with(formula="os.system"),
        "unknown_act": lambda: spec_with(act="eval"),
        "bad_positions": lambda: spec_with(positions="f1+f2+x"),
        "layer_out_of_range": lambda: spec_with(layer=4),
        "negative_layer": lambda: spec_with(layer=-1),
        "huge_rank": lambda: spec_with(low_rank_dimension=10**9),
        "missing_tensor": lambda: rebuilt(lambda tensors: tensors.pop("sites.0.rotate_layer")),
        "extra_tensor": lambda: rebuilt(lambda tensors: tensors.update({"sites.0.payload": torch.ones(4)})),
        "path_as_tensor_name": lambda: rebuilt(
            lambda tensors: tensors.update({"sites.0.../../../etc/passwd": torch.ones(4)})
        ),
        "manifest_is_a_number": lambda: edited_json(lambda header: header.update(__metadata__={"reft": "1"})),
        "manifest_nan": lambda: manifest_text(lambda text: text.replace('"training":{}', '"training":{"lr":NaN}')),
        "manifest_huge_number": lambda: manifest_text(
            lambda text: text.replace('"training":{}', '"training":{"lr":1e999}')
        ),
        "manifest_long_integer": lambda: manifest_text(
            lambda text: text.replace('"training":{}', '"training":{"n":' + "1" * 5000 + "}")
        ),
        "manifest_nested": lambda: manifest_text(
            lambda text: text.replace('"training":{}', '"training":{"a":' + "[" * 2000 + "]" * 2000 + "}")
        ),
        "manifest_key_twice": lambda: manifest_text(lambda text: text[:-1] + ',"name":"other"}'),
        "manifest_half_surrogate": lambda: manifest_text(lambda text: text.replace('"sample"', '"\\ud800"')),
        "manifest_trailing_bytes": lambda: manifest_text(lambda text: text + "\x00"),
        "manifest_empty": lambda: manifest_text(lambda _: ""),
        "layer_is_true": lambda: spec_with(layer=True),
        "layer_is_a_float": lambda: spec_with(layer=1.0),
        "layer_beyond_64_bits": lambda: spec_with(layer=1 << 70),
        "positions_with_a_line_break": lambda: spec_with(positions="l1\n"),
        "positions_in_other_digits": lambda: spec_with(positions="l\u0661"),
        "positions_beyond_any_prompt": lambda: spec_with(positions=[10**12]),
        "formula_with_a_look_alike": lambda: spec_with(formula="l\u043ereft"),
        "parameters_with_a_gap": lambda: spec_with(parameters=7),
        "no_interventions": lambda: rebuilt(change_manifest=lambda manifest: manifest.update(interventions=[])),
        "long_name": lambda: rebuilt(change_manifest=lambda manifest: manifest.update(name="a" * 300)),
        "tensor_name_with_control_characters": lambda: rebuilt(
            lambda tensors: tensors.update({"sites.0.a\r\n\x1b[31mb": torch.ones(4)})
        ),
        "manifest_field_with_control_characters": lambda: rebuilt(
            change_manifest=lambda manifest: manifest.update({"a\r\nlevel=ERROR \x1b[31m": 1})
        ),
        "long_tensor_name": lambda: rebuilt(lambda tensors: tensors.update({"sites.0." + "a" * 10_000: torch.ones(4)})),
        "tensor_name_written_backwards": lambda: rebuilt(
            lambda tensors: tensors.update({"sites.0.\u202etac": torch.ones(4)})
        ),
        "tensor_of_another_group": lambda: rebuilt(
            lambda tensors: tensors.update({"sites.00.rotate_layer": torch.ones(4)})
        ),
    },
    UnsupportedComponentError: {
        "unknown_component": lambda: spec_with(component="__class__"),
        "component_with_a_path": lambda: spec_with(component="block_output/../../x"),
    },
    InterventionShapeError: {
        "wrong_rank": lambda: spec_with(low_rank_dimension=3),
        "wrong_shape": lambda: tensor_set("learned_source_weight", torch.ones(2, 8)),
        "transposed": lambda: tensor_set("rotate_layer", torch.eye(16)[:2].contiguous()),
        "wrong_dtype": lambda: tensor_set("learned_source_bias", torch.ones(2, dtype=torch.int64)),
        "other_hidden_size": lambda: dumps(make_set(1, base=replace(BASE, hidden_size=32))),
        "other_num_layers": lambda: dumps(make_set(1, base=replace(BASE, num_layers=40))),
        "empty_tensor": lambda: tensor_set("rotate_layer", torch.ones(0, 2)),
        "scalar_tensor": lambda: tensor_set("rotate_layer", torch.tensor(1.0)),
        "unknown_dtype": lambda: entry_with(dtype="object"),
        "dtype_is_a_list": lambda: entry_with(dtype=["F32"]),
        "eight_bit_floats": lambda: entry_with(dtype="F8_E4M3"),
        "boolean_tensor": lambda: tensor_set("rotate_layer", torch.ones(16, 2, dtype=torch.bool)),
        "complex_tensor": lambda: tensor_set("rotate_layer", torch.ones(16, 2, dtype=torch.complex64)),
    },
    InterventionValueError: {
        "nan": lambda: filled("learned_source_weight", float("nan")),
        "infinity": lambda: filled("learned_source_weight", float("inf")),
        "overflows_float32": lambda: tensor_set("learned_source_bias", torch.full((2,), 1e300, dtype=torch.float64)),
        "collapsed_rotation": lambda: tensor_set("rotate_layer", torch.zeros(16, 2)),
        "skewed_rotation": lambda: filled("rotate_layer", 0.9),
        "half_infinity": lambda: tensor_set("learned_source_bias", torch.full((2,), float("inf"), dtype=torch.float16)),
        "bfloat_nan": lambda: tensor_set("learned_source_bias", torch.full((2,), float("nan"), dtype=torch.bfloat16)),
        "negative_infinity": lambda: filled("rotate_layer", float("-inf")),
    },
    InterventionBaseMismatchError: {
        "other_base_weights": lambda: dumps(make_set(1, base=replace(BASE, fingerprint="other"))),
    },
}

HOSTILE: Mapping[str, tuple[Callable[[], bytes], type[ReftError]]] = MappingProxyType(
    {name: (make, error) for error, cases in _BY_ERROR.items() for name, make in cases.items()}
)
"""What makes each file, and the type of the error that refuses it."""
