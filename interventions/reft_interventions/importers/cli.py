"""`reft import` and `reft export`."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..activations import Activation
from ..errors import InterventionImportError, ReftError
from ..exporters import export_pyreft
from ..file_format import load, save
from ..formulas import FORMULAS
from ..intervention_set import InterventionSet
from ..user_folders import DEFAULT_MODEL
from .formats import READERS, import_checkpoint
from .options import ImportOptions

_IMPORT_EXAMPLES = f"""\
examples:
  reft import trained/ --base-model {DEFAULT_MODEL} --positions f7+l7 -o mine.safetensors
  reft import emoji/ --base-model Qwen/Qwen2.5-1.5B-Instruct --num-layers 28 --positions l1
  reft import happy.gguf --base-model ./mistral-7b --layers "10;11;12" --scale 0.8

docs/importing.md has one for every format. Then: reft interventions upload mine.safetensors
"""


def main_import(arguments: Sequence[str] | None = None) -> int:
    """Read a checkpoint, write a `.safetensors`, and say what was read; 0, or 1 with one line on standard error."""
    parsed = import_parser().parse_args(arguments)
    return _guarded("reft import", lambda: _import(parsed))


def main_export(arguments: Sequence[str] | None = None) -> int:
    """Write an intervention file as a folder that pyreft loads; 0, or 1 with one line on standard error."""
    parsed = export_parser().parse_args(arguments)
    return _guarded("reft export", lambda: _export(parsed))


def import_parser() -> argparse.ArgumentParser:
    """The options of `reft import`."""
    parser = argparse.ArgumentParser(
        prog="reft import",
        description="Turn another library's checkpoint into an intervention file. No code of it is run.",
        epilog=_IMPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, help="the folder or file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: NAME.safetensors, here)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--format", choices=sorted(READERS), help="(default: found out by looking)")
    base = parser.add_argument_group("the base model")
    base.add_argument("--base-model", metavar="MODEL", help=f"a folder, a Hugging Face id, or {DEFAULT_MODEL}")
    base.add_argument("--num-layers", type=int, metavar="N", help="record the id as it is, without looking it up")
    base.add_argument("--hidden-size", type=int, metavar="N", help="needed with it where the tensors don't tell")
    edit = parser.add_argument_group("what checkpoints rarely record")
    edit.add_argument("--positions", type=_positions, metavar="P", help="fN, lN, fN+lM, prompt, all, or 0,1,-1")
    edit.add_argument("--suffix-offset", type=int, default=0, metavar="N", help="end lN that far before the end")
    edit.add_argument("--short-prompt", choices=("paper", "floor"), help="(default: floor for pyreft)")
    edit.add_argument("--formula", choices=sorted(FORMULAS), help="where the tensors fit several")
    edit.add_argument("--act", choices=get_args(Activation), help="the activation (default: linear)")
    edit.add_argument("--head", type=int, metavar="N", help="for head_* components")
    edit.add_argument("--allow-non-orthonormal", action="store_true", help="keep an R that is not, as another formula")
    vectors = parser.add_argument_group("steering vectors and dictionaries")
    vectors.add_argument("--layers", type=_layers, metavar="L", help="only these, for instance '10;11;12'")
    vectors.add_argument("--component", help="(default: block_output)")
    vectors.add_argument("--scale", type=float, metavar="S", help="multiply the vectors (default: 1)")
    vectors.add_argument("--hidden-states", dest="is_hidden_states", action="store_true", help="row 0 is the embedding")
    vectors.add_argument("--concept", type=int, metavar="I", help="which row of a dictionary")
    vectors.add_argument("--max-activation", type=float, metavar="A", help="of the concept (default: 1)")
    manifest = parser.add_argument_group("what the file says of itself")
    manifest.add_argument("--name", default="", help="(default: the output's name)")
    manifest.add_argument("--description", default="", help="one sentence for users")
    manifest.add_argument("--license", default="", help="SPDX id")
    manifest.add_argument("--prompt-template", help="how to write a prompt")
    return parser


def export_parser() -> argparse.ArgumentParser:
    """The options of `reft export`."""
    parser = argparse.ArgumentParser(
        prog="reft export",
        description="Write an intervention file as a folder that pyreft's ReftModel.load reads.",
        epilog="examples:\n  reft export haiku.safetensors haiku-pyreft/\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the intervention file")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    return parser


def _import(parsed: argparse.Namespace) -> None:
    values = vars(parsed).copy()
    source, output, force = values.pop("source"), values.pop("output"), values.pop("force")
    output = output or Path(f"{source.resolve().name.removesuffix(source.suffix)}.safetensors")
    if output.exists() and not force:
        raise InterventionImportError(f"{output} exists; --force replaces it, -o names another", param="output")
    format_name = values.pop("format")
    imported = import_checkpoint(source, ImportOptions(**values), format_name)
    intervention_set = _named(imported.intervention_set, output.stem)
    content_hash = save(intervention_set, output)
    console = Console(highlight=False)
    console.print(_summary(intervention_set, imported.format))
    for note in imported.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"wrote {output} ({output.stat().st_size:,} bytes, {content_hash})", markup=False, soft_wrap=True)


def _named(intervention_set: InterventionSet, name: str) -> InterventionSet:
    """The set, with `name` if it has none."""
    manifest = intervention_set.manifest
    if manifest.name:
        return intervention_set
    return InterventionSet.create(manifest.model_copy(update={"name": name[:256]}), intervention_set.parameters)


def _export(parsed: argparse.Namespace) -> None:
    intervention_set = load(parsed.file)
    notes = export_pyreft(intervention_set, parsed.folder)
    console = Console(highlight=False)
    console.print(_summary(intervention_set, "pyreft"))
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"wrote {parsed.folder}", markup=False, soft_wrap=True)


def _summary(intervention_set: InterventionSet, format_name: str) -> Table:
    """What the set is, in a few rows."""
    manifest = intervention_set.manifest
    specs = manifest.interventions
    base = manifest.base_model
    rows = {
        "format": format_name,
        "base model": f"{base.id} (hidden size {base.hidden_size}, {base.num_layers} layers, "
        f"{'fingerprint known' if base.fingerprint else 'weights not checked'})",
        "formulas": ", ".join(sorted({spec.formula for spec in specs})),
        "layers": ", ".join(map(str, sorted({spec.layer for spec in specs}))),
        "components": ", ".join(sorted({spec.component for spec in specs})),
        "rank": ", ".join(map(str, sorted({spec.low_rank_dimension for spec in specs} - {0}))),
        "positions": ", ".join(sorted({str(spec.positions) for spec in specs})),
        "edits": str(len(specs)),
        "parameters": f"{intervention_set.num_parameters:,}",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(value))
    return table


def _guarded(name: str, run: Callable[[], None]) -> int:
    from transformers.utils import logging as transformers_logging  # takes seconds: a wrong option is told before

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about files that are not the user's to change
            run()
    except (ReftError, OSError) as error:
        message = error.message if isinstance(error, ReftError) else f"{error.filename}: {error.strerror}"
        Console(stderr=True, highlight=False).print(f"{name}: {message}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _positions(text: str) -> str | tuple[int, ...]:
    if re.fullmatch(r"-?[0-9]+(,-?[0-9]+)*", text):
        return tuple(int(word) for word in text.split(","))
    return text


def _layers(text: str) -> tuple[int, ...]:
    words = re.split(r"[;,]", text)
    if not all(re.fullmatch(r"[0-9]{1,5}", word.strip()) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write '3;9;18'")
    return tuple(int(word) for word in words)
