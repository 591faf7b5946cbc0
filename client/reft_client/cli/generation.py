"""`reft complete` and `reft chat`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator

from ..errors import ReftClientError
from ..options import ChatOptions, CompletionOptions, GenerationOptions
from ..sync_client import ReftClient
from ..types import ChatChunk, ChatMessage, CompletionChunk, InterventionRef
from .failure import describe
from .reference import parse_reference
from .terminal import Terminal

__all__ = ["chat", "complete"]

_REPL_HELP = """\
/use NAME[@VERSION][*SCALE] ...   answer with these interventions; none = the base model
/reset                            forget the conversation
/help                             this list
/exit                             leave (Ctrl-D too); Ctrl-C stops an answer"""


def complete(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """Continue a prompt."""
    prompt = args.prompt
    if prompt is None or prompt == "-":
        if prompt is None and terminal.stdin.isatty():
            args.usage_error("give a prompt, or pipe one in")
        prompt = terminal.read()
    options: CompletionOptions = {}
    _add_sampling(options, args)
    if args.max_tokens is not None:
        options["max_tokens"] = args.max_tokens
    if not _wants_stream(args):
        response = client.complete(prompt, **options)
        if args.json:
            terminal.json(response)
        else:
            terminal.line(response.choices[0].text if response.choices else "")
        return 0
    with client.complete(prompt, stream=True, **options) as stream:
        if args.json:
            _print_chunks(stream, terminal)
        else:
            _print_pieces((choice.text for chunk in stream for choice in chunk.choices), terminal)
    return 0


def chat(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """Answer one message, or hold a conversation."""
    messages = [ChatMessage(role="system", content=args.system)] if args.system else []
    if args.message is None and terminal.stdin.isatty():
        return _converse(args, client, terminal, messages)
    content = terminal.read() if args.message in (None, "-") else args.message
    messages.append(ChatMessage(role="user", content=content))
    options = _chat_options(args)
    if not _wants_stream(args):
        response = client.chat(messages, **options)
        if args.json:
            terminal.json(response)
        else:
            terminal.line((response.choices[0].message.content or "") if response.choices else "")
        return 0
    with client.chat(messages, stream=True, **options) as stream:
        if args.json:
            _print_chunks(stream, terminal)
        else:
            _print_pieces(_contents(stream), terminal)
    return 0


def _converse(args: argparse.Namespace, client: ReftClient, terminal: Terminal, messages: list[ChatMessage]) -> int:
    with contextlib.suppress(ImportError):  # gives input() its line editing; Windows has none
        import readline  # noqa: F401

    options = _chat_options(args)
    num_system = len(messages)
    terminal.note("Talk to the model; /help lists the commands, Ctrl-D ends.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            terminal.line()
            return 0
        command, *words = text.split() or [""]
        if command == "/exit":
            return 0
        if command == "/reset":
            del messages[num_system:]
            terminal.note("(the conversation is forgotten)")
        elif command == "/use":
            try:
                options["intervention"] = [parse_reference(word) for word in words]
            except argparse.ArgumentTypeError as error:
                terminal.note(f"reft: {error}")
            else:
                terminal.note(f"(the next answer is by {', '.join(words) or 'the base model'})")
        elif command.startswith("/"):
            if command != "/help":
                terminal.note(f"reft: there is no command {command}")
            terminal.note(_REPL_HELP)
        elif text:
            _answer(text, client, terminal, messages, options)


def _answer(
    text: str, client: ReftClient, terminal: Terminal, messages: list[ChatMessage], options: ChatOptions
) -> None:
    """One turn. It joins the conversation only with its whole answer, so that a failed one can be asked again."""
    question = ChatMessage(role="user", content=text)
    try:
        with client.chat([*messages, question], stream=True, **options) as stream:
            answer = _print_pieces(_contents(stream), terminal)
    except ReftClientError as error:
        terminal.note(f"reft: {describe(error)}")
    except KeyboardInterrupt:
        terminal.note("(stopped)")
    else:
        messages += [question, ChatMessage(role="assistant", content=answer)]


def _add_sampling(options: GenerationOptions, args: argparse.Namespace) -> None:
    refs: list[InterventionRef] | None = args.intervention
    if refs:
        options["intervention"] = refs
    if args.model is not None:
        options["model"] = args.model
    if args.task is not None:
        options["task"] = args.task
    if args.routing_key is not None:
        options["routing_key"] = args.routing_key
    if args.temperature is not None:
        options["temperature"] = args.temperature
    if args.top_p is not None:
        options["top_p"] = args.top_p
    if args.top_k is not None:
        options["top_k"] = args.top_k
    if args.seed is not None:
        options["seed"] = args.seed
    if args.stop:
        options["stop"] = args.stop


def _chat_options(args: argparse.Namespace) -> ChatOptions:
    options: ChatOptions = {}
    _add_sampling(options, args)
    if args.max_tokens is not None:
        options["max_completion_tokens"] = args.max_tokens
    return options


def _wants_stream(args: argparse.Namespace) -> bool:
    return bool(args.stream) if args.stream is not None else not args.json


def _contents(stream: Iterable[ChatChunk]) -> Iterator[str]:
    return (choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def _print_chunks(stream: Iterable[CompletionChunk] | Iterable[ChatChunk], terminal: Terminal) -> None:
    for chunk in stream:
        terminal.json(chunk, indent=None)


def _print_pieces(pieces: Iterable[str], terminal: Terminal) -> str:
    """Print an answer as it comes and end its last line, also when it breaks off. Returns all of it."""
    answer: list[str] = []
    try:
        for piece in pieces:
            terminal.write(piece)
            answer.append(piece)
    finally:
        text = "".join(answer)
        if text and not text.endswith("\n"):
            terminal.line()
    return text
