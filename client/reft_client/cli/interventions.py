"""`reft interventions list`, `versions`, `show`, `upload`, `download` and `delete`: sets as a whole."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..sync_client import ReftClient
from ..types import InterventionInfo, InterventionUpload
from .sets import Add
from .terminal import Terminal, format_size, format_time

__all__ = ["add_interventions"]


def add_interventions(sub: Any, add: Add) -> None:
    """Add the commands about whole sets to those of `reft interventions`; `add` adds one."""
    _add_lists(sub, add)
    upload = add(
        sub,
        "upload",
        "upload a file; under a name that exists it becomes the next version",
        _upload,
        "reft interventions upload haiku.safetensors\nreft interventions upload out/final.safetensors --name haiku",
    )
    upload.add_argument("file", type=Path)
    upload.add_argument("--name", help="(default: the file's name without its suffix)")
    upload.add_argument("--if-match", metavar="HASH", help="only if the newest version has this content hash")
    upload.add_argument("--must-be-new", action="store_true", help="only if the name has no version")
    download = add(
        sub,
        "download",
        "save a version as a file",
        _download,
        "reft interventions download haiku\nreft interventions download haiku@1 -o old.safetensors",
    )
    download.add_argument("name", metavar="NAME[@VERSION]")
    download.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: NAME.safetensors)")
    download.add_argument("--force", action="store_true", help="replace an existing file")
    delete = add(
        sub,
        "delete",
        "delete one version, or all of them",
        _delete,
        "reft interventions delete haiku@1\nreft interventions delete haiku --yes",
    )
    delete.add_argument("name", metavar="NAME[@VERSION]")
    delete.add_argument("--yes", action="store_true", help="don't ask")
    delete.add_argument("--purge", action="store_true", help="for good: nothing of it can be restored")


def _add_lists(sub: Any, add: Add) -> None:
    every = add(
        sub,
        "list",
        "list what is stored, the newest version of each",
        _list,
        "reft interventions list\nreft interventions list --label task=style",
    )
    every.add_argument("--label", metavar="KEY[=VALUE],...", help="only those that have these labels")
    show = add(
        sub,
        "show",
        "show one version",
        _show,
        "reft interventions show haiku\nreft interventions show haiku@2",
    )
    show.add_argument("name", metavar="NAME[@VERSION]")
    versions = add(sub, "versions", "list the versions", _versions, "reft interventions versions haiku")
    versions.add_argument("name", metavar="NAME")
    for parser in (every, versions):
        parser.add_argument("--deleted", action="store_true", help="what can be restored, instead of what lives")


def _list(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions list`."""
    answer = client.interventions.list(label=args.label, deleted=args.deleted)
    infos = list(answer.data)
    while answer.has_more:
        answer = client.interventions.list(label=args.label, deleted=args.deleted, after=answer.last_id)
        infos += answer.data
    answer = answer.model_copy(update={"data": tuple(infos)})
    if args.json:
        terminal.json(answer)
    elif answer.data:
        _print_infos(answer.data, terminal)
    elif args.label or args.deleted:
        terminal.note("there is none")
    else:
        terminal.note("nothing is stored yet; `reft interventions upload FILE` adds one")
    return 0


def _versions(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions versions`."""
    answer = client.interventions.versions(args.name, deleted=args.deleted)
    if args.json:
        terminal.json(answer)
    else:
        _print_infos(answer.data, terminal)
    return 0


def _show(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions show`."""
    info = client.interventions.get(args.name)
    if args.json:
        terminal.json(info)
    else:
        terminal.table(("field", "value"), _details(info))
    return 0


def _upload(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions upload`."""
    with terminal.progress() as progress:
        task = progress.add_task(args.file.name, total=None)
        answer = client.interventions.upload(
            args.file,
            args.name,
            if_match=args.if_match,
            must_be_new=args.must_be_new,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if args.json:
        terminal.json(answer)
    else:
        terminal.table(("field", "value"), [*_details(answer), *_self_test(answer)])
        terminal.note(f'use it: reft complete "..." -i {answer.name}')
    return 0


def _delete(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions delete`."""
    if not args.yes:
        if not terminal.stdin.isatty():
            args.usage_error("there is no one to ask; add --yes to delete without asking")
        what = args.name if "@" in args.name else f"every version of {args.name}"
        if input(f"Delete {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            terminal.note("nothing was deleted")
            return 0
    answer = client.interventions.delete(args.name, purge=args.purge)
    terminal.answer(
        answer, f"deleted {answer.name}{'' if answer.version is None else f'@{answer.version}'}", is_json=args.json
    )
    return 0


def _download(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft interventions download`."""
    info = client.interventions.get(args.name)
    path: Path = args.output or Path(f"{Path(info.name).name}.safetensors")
    if path.exists() and not args.force:
        raise InvalidArgumentError(f"{path} exists; choose another with -o, or add --force")
    with terminal.progress() as progress:
        task = progress.add_task(path.name, total=None)
        client.interventions.download(
            info.name,
            path,
            info.version,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total or None),
        )
    terminal.answer(info, f"saved {info.name}@{info.version} as {path}", is_json=args.json)
    return 0


def _print_infos(infos: Iterable[InterventionInfo], terminal: Terminal) -> None:
    header = ("name", "version", "formula", "layers", "positions", "rank", "size", "created", "state")
    rows = [
        (
            info.name,
            str(info.version),
            ",".join(info.formulas),
            ",".join(map(str, info.layers)),
            " ".join(info.positions),
            "" if info.low_rank_dimension is None else str(info.low_rank_dimension),
            format_size(info.size_bytes),
            format_time(info.created),
            _state(info),
        )
        for info in infos
    ]
    terminal.table(header, rows, optional=("rank", "size", "formula", "layers"))


def _state(info: InterventionInfo) -> str:
    if info.deleted is None:
        return info.state
    if info.restorable_until is None:
        return "deleted"
    return f"deleted, restorable until {format_time(info.restorable_until)}"


def _details(info: InterventionInfo) -> list[tuple[str, str]]:
    rows = [
        ("name", info.name),
        ("version", str(info.version)),
        ("content hash", info.content_hash),
        ("description", info.description),
        ("aliases", ", ".join(info.aliases)),
        ("labels", ", ".join(f"{key}={value}" if value else key for key, value in info.labels.items())),
        ("license", info.license),
        ("base model", info.base_model),
        ("formula", ", ".join(info.formulas)),
        ("components", ", ".join(info.components)),
        ("layers", ", ".join(map(str, info.layers))),
        ("positions", ", ".join(info.positions)),
        ("rank", "" if info.low_rank_dimension is None else str(info.low_rank_dimension)),
        ("subspaces", ", ".join(f"{name}: {' '.join(map(str, ones))}" for name, ones in info.subspaces.items())),
        ("parameters", "" if info.num_parameters is None else f"{info.num_parameters:,}"),
        ("size", format_size(info.size_bytes)),
        ("created", f"{format_time(info.created)} UTC"),
        ("state", _state(info)),
    ]
    return [(field, value) for field, value in rows if value]


def _self_test(answer: InterventionUpload) -> list[tuple[str, str]]:
    if answer.self_test is None:
        return []
    return [
        (
            "self-test",
            f"layer {site.layer} {site.component}: {site.num_edited_rows} rows edited, "
            f"change {site.delta_norm:.3g} of norm {site.residual_norm:.3g}",
        )
        for site in answer.self_test.sites
    ]
