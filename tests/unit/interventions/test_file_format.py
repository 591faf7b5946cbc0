"""The intervention file: round trips, atomic writing, and every hostile file refused by name."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as save_safetensors

from reft_interventions import FORMULAS, FileLimits, InterventionSet, Manifest, dumps, load, loads, read_manifest, save
from reft_interventions.errors import (
    InterventionError,
    InterventionFileError,
    InterventionFileTooLargeError,
    InterventionManifestError,
    InterventionShapeError,
    ReftError,
)


@pytest.fixture
def tiny_set(tiny_model, make_set) -> InterventionSet:
    return make_set(tiny_model("llama"), {}, {"layer": 2, "formula": "scale_shift", "positions": (0, -1)})


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | str | bytes, body: bytes) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + body


def with_manifest(data: bytes, change) -> bytes:
    header, body = split(data)
    manifest = json.loads(header["__metadata__"]["reft"])
    changed = change(manifest)
    header["__metadata__"]["reft"] = json.dumps(manifest if changed is None else changed)
    return join(header, body)


def with_header(data: bytes, change) -> bytes:
    header, body = split(data)
    change(header)
    return join(header, body)


def both_ways(data: bytes, tmp_path, limits=None):
    """`loads` and `load` must agree; returns the set, or raises what both raise."""
    path = tmp_path / "set.safetensors"
    path.write_bytes(data)
    from_memory, from_disk = outcome(loads, data, limits), outcome(load, path, limits)
    if isinstance(from_memory, ReftError):
        assert (type(from_disk), str(from_disk)) == (type(from_memory), str(from_memory))
        raise from_memory
    assert from_disk.content_hash == from_memory.content_hash
    return from_memory


def outcome(read, source, limits=None):
    """The set, or the typed error; any other exception goes on."""
    try:
        return read(source, limits)
    except ReftError as error:
        return error


def assert_refused(data, tmp_path, error, match, limits=None):
    with pytest.raises(error, match=match) as caught:
        both_ways(data, tmp_path, limits)
    assert type(caught.value) is error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", FORMULAS)
def test_save_and_load_keep_every_bit_and_the_hash(tiny_model, make_set, tmp_path, formula, dtype):
    one = make_set(tiny_model("llama"), {"formula": formula}, {"formula": formula, "layer": 2}, dtype=dtype)
    path = tmp_path / "set.safetensors"
    assert save(one, path) == one.content_hash
    loaded = load(path)
    assert loaded.manifest == one.manifest == read_manifest(path)
    assert loaded.content_hash == one.content_hash
    for mine, theirs in zip(one.parameters, loaded.parameters, strict=True):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) and theirs[name].dtype == dtype for name in mine)
    assert loaded.fold().content_hash == one.fold().content_hash
    assert dumps(loaded) == path.read_bytes() == dumps(one)


def test_tied_and_untied_groups_survive_the_file(tiny_model, make_set, tmp_path):
    one = make_set(
        tiny_model("llama"),
        {"positions": "f2+l2", "part": "prefix", "parameters": 0},
        {"positions": "f2+l2", "part": "suffix", "parameters": 1},
        {"positions": "f2+l2", "layer": 3, "parameters": 0},
    )
    loaded = both_ways(dumps(one), tmp_path)
    assert len(loaded.parameters) == 2
    assert loaded.num_parameters == one.num_parameters == 2 * (32 * 4 * 2 + 4)
    assert loaded.fold().content_hash == one.fold().content_hash


def test_file_opens_with_plain_safetensors(tiny_set, tmp_path):
    save(tiny_set, tmp_path / "set.safetensors")
    with safe_open(tmp_path / "set.safetensors", "pt") as file:
        assert Manifest.parse(file.metadata()["reft"]) == tiny_set.manifest
        assert set(file.keys()) == set(tiny_set.named_tensors())
        assert all(name.startswith("sites.") for name in file.keys())  # noqa: SIM118


def test_content_hash_ignores_how_the_file_is_laid_out(tiny_set):
    data = dumps(tiny_set)
    header, body = split(data)
    spaced = json.dumps(dict(reversed(header.items())), indent=3)
    relaid = join(spaced, body)
    respelled = with_manifest(data, lambda manifest: dict(reversed(manifest.items())))
    assert relaid != data
    assert loads(relaid).content_hash == loads(respelled).content_hash == tiny_set.content_hash


def test_content_hash_ignores_the_order_of_tensors_and_format_metadata(tiny_set):
    tensors = dict(reversed(tiny_set.named_tensors().items()))
    data = save_safetensors(tensors, {"reft": tiny_set.manifest.canonical_json(), "format": "pt"})
    assert loads(data).content_hash == tiny_set.content_hash


def test_content_hash_sees_manifest_dtype_and_every_tensor(tiny_set):
    hashes = {tiny_set.content_hash}
    renamed = tiny_set.manifest.model_copy(update={"name": "other"})
    hashes.add(InterventionSet.create(renamed, tiny_set.parameters).content_hash)
    for index, name in itertools.chain.from_iterable(
        [(index, name) for name in group] for index, group in enumerate(tiny_set.parameters)
    ):
        groups = [dict(group) for group in tiny_set.parameters]
        groups[index][name] = groups[index][name].double()
        hashes.add(InterventionSet.create(tiny_set.manifest, groups).content_hash)
        groups[index][name] = tiny_set.parameters[index][name] * -1
        hashes.add(InterventionSet.create(tiny_set.manifest, groups).content_hash)
    assert len(hashes) == 2 + 2 * 5


def test_set_keeps_its_own_copy_of_the_tensors(tiny_set):
    source = [{name: tensor.clone() for name, tensor in group.items()} for group in tiny_set.parameters]
    one = InterventionSet.create(tiny_set.manifest, source)
    source[0]["learned_source_bias"].zero_()
    assert one.content_hash == loads(dumps(one)).content_hash == tiny_set.content_hash


def test_non_contiguous_and_grad_tensors_are_stored_by_value(tiny_set):
    groups = [{name: tensor.clone() for name, tensor in group.items()} for group in tiny_set.parameters]
    groups[0]["rotate_layer"] = groups[0]["rotate_layer"].T.contiguous().T.requires_grad_()
    one = InterventionSet.create(tiny_set.manifest, groups)
    assert one.content_hash == tiny_set.content_hash
    assert not one.parameters[0]["rotate_layer"].requires_grad


def test_save_replaces_the_file_and_leaves_nothing_else(tiny_set, tiny_model, make_set, tmp_path):
    path = tmp_path / "set.safetensors"
    save(make_set(tiny_model("llama"), seed=9), path)
    save(tiny_set, path)
    assert load(path).content_hash == tiny_set.content_hash
    assert os.listdir(tmp_path) == ["set.safetensors"]  # noqa: PTH208


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_save_keeps_the_old_file_and_leaves_nothing_else(tiny_set, tmp_path, monkeypatch, step):
    path = tmp_path / "set.safetensors"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if step == "fsync" else "pathlib.Path.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            save(tiny_set, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.safetensors"]


def test_save_syncs_the_file_before_the_rename_and_the_folder_after(tiny_set, tmp_path, monkeypatch):
    events = []
    fsync, replace_ = os.fsync, type(tmp_path).replace
    monkeypatch.setattr("os.fsync", lambda fd: (events.append(("fsync", os.path.isdir(fd))), fsync(fd))[1])  # noqa: PTH112
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda self, target: (events.append(("rename",)), replace_(self, target))[1]
    )
    save(tiny_set, tmp_path / "set.safetensors")
    assert events == [("fsync", False), ("rename",), ("fsync", True)]


def test_every_truncation_is_refused(tiny_set, tmp_path):
    data = dumps(tiny_set)
    length = 8 + int.from_bytes(data[:8], "little")
    cuts = {*range(12), 100, length - 1, length, length + 1, len(data) - 1}
    for cut in sorted(cuts):
        assert_refused(data[:cut], tmp_path, InterventionFileError, "truncated")


@pytest.mark.parametrize("claim", [(1 << 20) + 1, 1 << 30, 1 << 62, (1 << 64) - 1])
def test_huge_header_claim_is_refused(tiny_set, tmp_path, claim):
    data = struct.pack("<Q", claim) + dumps(tiny_set)[8:]
    assert_refused(data, tmp_path, InterventionFileTooLargeError, "header claims")


def test_huge_header_claim_reads_only_a_few_bytes(tiny_set, tmp_path, monkeypatch):
    path = tmp_path / "set.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 30) + dumps(tiny_set)[8:])
    reads = []
    real = io.BufferedReader.read

    class Counting(io.BufferedReader):
        def read(self, size=-1, /):
            reads.append(size)
            return real(self, size)

    monkeypatch.setattr("os.fdopen", lambda fd, mode: Counting(io.FileIO(fd, mode)))
    with pytest.raises(InterventionFileTooLargeError):
        read_manifest(path)
    assert reads == [9]


def test_file_over_the_limit_is_refused_unread(tiny_set, tmp_path):
    data = dumps(tiny_set)
    limits = FileLimits(max_file_bytes=len(data) - 1)
    assert_refused(data, tmp_path, InterventionFileTooLargeError, "larger than", limits)
    assert both_ways(data, tmp_path, FileLimits(max_file_bytes=len(data))).content_hash == tiny_set.content_hash
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InterventionFileTooLargeError):
        load(sparse)
    with pytest.raises(InterventionFileTooLargeError):
        read_manifest(sparse)


def test_too_many_tensors_are_refused(tiny_set, tmp_path):
    limits = replace(FileLimits(), max_tensors=4)
    assert_refused(dumps(tiny_set), tmp_path, InterventionFileTooLargeError, "5 tensors, the limit is 4", limits)


def test_default_tensor_limit_stops_a_header_full_of_empty_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = join({f"t{index}": entry for index in range(5000)}, b"")
    assert_refused(data, tmp_path, InterventionFileTooLargeError, "5000 tensors")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "nonsense",
        '{"a":1}{"b":2}',
        '{"__metadata__":{"reft":"{}"},"__metadata__":{"reft":"{}"}}',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":-Infinity}',
        "{" + '"a":{' * 100_000,
        '{"a":' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"a":' + "9" * 10_000 + "}",
        '{"__metadata__":[]}',
        '{"__metadata__":{"reft":1}}',
        '{"__metadata__":{"reft":"{}","other":"x"}}',
        b'{"\xff\xfe":1}',
    ],
)
def test_header_that_is_not_the_expected_json_is_refused(tmp_path, text):
    assert_refused(join(text, b""), tmp_path, InterventionFileError, ".")


def change_entry(**fields):
    return lambda header: header["sites.0.rotate_layer"].update(fields)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (change_entry(dtype="I64"), InterventionShapeError, "F64, F32, F16 or BF16"),
        (change_entry(dtype="U8"), InterventionShapeError, "F64, F32, F16 or BF16"),
        (change_entry(dtype=["F32"]), InterventionShapeError, "F64, F32, F16 or BF16"),
        (change_entry(dtype=None), InterventionShapeError, "F64, F32, F16 or BF16"),
        (change_entry(dtype="F16"), InterventionFileError, "does not fill"),
        (change_entry(shape=[32, 5]), InterventionFileError, "does not fill"),
        (change_entry(shape=[-32, -4]), InterventionFileError, "malformed"),
        (change_entry(shape=[True, 128]), InterventionFileError, "malformed"),
        (change_entry(shape=[32.0, 4]), InterventionFileError, "malformed"),
        (change_entry(shape=[1, 32, 4]), InterventionFileError, "malformed"),
        (change_entry(shape=[1 << 60, 1 << 60]), InterventionFileError, "malformed"),
        (change_entry(shape=[1 << 40, 1 << 40]), InterventionFileError, "does not fill"),
        (change_entry(shape="32"), InterventionFileError, "malformed"),
        (change_entry(shape=[4, 32]), InterventionShapeError, r"must be \[32, 4\]"),
        (change_entry(data_offsets=[0]), InterventionFileError, "malformed"),
        (change_entry(data_offsets=[512, 0]), InterventionFileError, "does not fill"),
        (change_entry(data_offsets=[-512, 0]), InterventionFileError, "malformed"),
        (change_entry(data_offsets=[0, 512]), InterventionFileError, "overlap"),
        (change_entry(data_offsets=[1 << 40, (1 << 40) + 512]), InterventionFileError, "overlap|gap"),
        (change_entry(extra=1), InterventionFileError, "must have dtype, shape and data_offsets"),
        (lambda header: header.update({"sites.0.rotate_layer": 3}), InterventionFileError, "must have dtype"),
    ],
)
def test_tensor_entries_that_lie_are_refused(tiny_set, tmp_path, change, error, match):
    assert_refused(with_header(dumps(tiny_set), change), tmp_path, error, match)


def test_bytes_after_the_last_tensor_are_refused(tiny_set, tmp_path):
    assert_refused(dumps(tiny_set) + b"\0", tmp_path, InterventionFileError, "after its last tensor")


def test_gap_between_tensors_is_refused(tiny_set, tmp_path):
    header, body = split(dumps(tiny_set))
    first = min(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= first:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    data = join(header, body[:first] + b"gap!" + body[first:])
    assert_refused(data, tmp_path, InterventionFileError, "gap")


class Exploding:
    """A pickle of this raises at loading: reading it at all would show."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_under_another_name_is_refused_and_not_executed(tmp_path, protocol):
    data = pickle.dumps({"state": [1] * 100, "object": Exploding()}, protocol=protocol)
    match = "pickle, which is never read" if protocol >= 2 else "not a safetensors file|header claims"
    with pytest.raises(InterventionError, match=match) as caught:
        both_ways(data, tmp_path)
    assert type(caught.value) in (InterventionFileError, InterventionFileTooLargeError)


def test_torch_save_files_are_refused(tmp_path):
    for is_zip in (True, False):
        buffer = io.BytesIO()
        torch.save({"weight": torch.zeros(4)}, buffer, _use_new_zipfile_serialization=is_zip)
        assert_refused(buffer.getvalue(), tmp_path, InterventionFileError, "zip archive" if is_zip else "pickle")


def test_zip_bomb_under_another_name_is_refused_unopened(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * (32 << 20))
    assert_refused(buffer.getvalue(), tmp_path, InterventionFileError, "zip archive")


def test_git_lfs_pointer_is_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    assert_refused(pointer, tmp_path, InterventionFileError, "git lfs pull")


def test_plain_safetensors_without_manifest_is_refused(tmp_path):
    data = save_safetensors({"weight": torch.zeros(4)})
    assert_refused(data, tmp_path, InterventionManifestError, "no 'reft' entry")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("sites.0.extra", "no tensor sites.0.extra"),
        ("sites.2.vector", "does not use"),
        ("sites.00.rotate_layer", "does not use"),
        ("sites.-1.rotate_layer", "does not use"),
        ("rotate_layer", "does not use"),
        ("sites.0.sub.rotate_layer", "does not use"),
        ("../../etc/passwd", "does not use"),
        ("", "does not use"),
    ],
)
def test_left_over_tensor_is_refused(tiny_set, tmp_path, name, match):
    tensors = {**tiny_set.named_tensors(), name: torch.zeros(4)}
    data = save_safetensors(tensors, {"reft": tiny_set.manifest.canonical_json()})
    assert_refused(data, tmp_path, InterventionManifestError, match)


@pytest.mark.parametrize("name", ["sites.0.rotate_layer", "sites.0.learned_source_bias", "sites.1.scale"])
def test_missing_tensor_is_refused(tiny_set, tmp_path, name):
    tensors = tiny_set.named_tensors()
    del tensors[name]
    data = save_safetensors(tensors, {"reft": tiny_set.manifest.canonical_json()})
    assert_refused(data, tmp_path, InterventionManifestError, f"needs the tensor {name}")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format_version=2),
        lambda manifest: manifest.update(surprise=1),
        lambda manifest: manifest["base_model"].update(path="/etc"),
        lambda manifest: manifest["interventions"][0].update(code="import os"),
        lambda manifest: manifest.pop("base_model"),
        lambda manifest: manifest.update(interventions=[]),
        lambda manifest: [manifest],
    ],
)
def test_manifest_against_the_format_is_refused(tiny_set, tmp_path, change):
    assert_refused(with_manifest(dumps(tiny_set), change), tmp_path, InterventionManifestError, ".")


def test_hidden_size_of_the_manifest_must_be_the_tensors(tiny_set, tmp_path):
    data = with_manifest(dumps(tiny_set), lambda manifest: manifest["base_model"].update(hidden_size=64))
    assert_refused(data, tmp_path, InterventionShapeError, "hidden_size 64")


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_paths_that_are_not_files_are_refused_without_blocking(tmp_path, kind):
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    for read in (load, read_manifest):
        with pytest.raises(InterventionFileError, match=r"'thing' (can't be opened|is not a regular file)") as caught:
            read(path)
        assert str(tmp_path) not in caught.value.message


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), length=st.integers(0, 8))
def test_corrupted_bytes_give_a_set_or_a_typed_error(tiny_set, position, value, length):
    data = bytearray(dumps(tiny_set))
    position %= len(data)
    data[position : position + length] = bytes([value]) * length
    result = outcome(loads, bytes(data))
    assert isinstance(result, InterventionSet) or (isinstance(result, InterventionError) and result.message)
