"""Run a sandbox: `python -m tests.sandbox`, explained by `--help`."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import signature
from threading import Event, Thread
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tests.sandbox.options import Options
from tests.sandbox.project import generate
from tests.sandbox.server import Sandbox

DESCRIPTION = """\
A local BugsPulse Export API over real HTTP with made-up, believable data: sessions,
crashes, events and network calls. The same options give the same data. It listens on
127.0.0.1 only, prints one line of JSON when it is ready (url, api_key, row counts) and
serves until SIGTERM or SIGINT.
"""
OPEN = """\
The API reference says nothing about the order of rows, what a date as `to` includes,
whether `from` and `to` take a time of day, their time zone and the field they filter on,
whether /events honours page and limit, what a limit above 1,000 does, how the minute is
counted and what a 429 carries. Each is an option above, so that a client can be tried
against every reading.
"""
SEVERAL = {tuple, set, dict}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sandbox",
        description=DESCRIPTION,
        epilog=OPEN,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_all(parser.add_argument_group("data"), generate)
    run = parser.add_argument_group("server")
    run.add_argument("--port", type=int, default=0, help="port, 0 for a free one")
    run.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="also stop when standard input ends, as it does when the parent is gone",
    )
    _add_all(parser.add_argument_group("behaviour and faults"), Options)
    return parser


def _add_all(group: argparse._ArgumentGroup, called: Callable[..., object]) -> None:
    """Add an option for each argument of what is called that says what it is."""
    arguments = signature(called).parameters
    for name, hint in get_type_hints(called, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, text = get_args(hint)
            how = {"default": arguments[name].default} | _how(kind)
            option = "--" + name.replace("_", "-")
            group.add_argument(option, help=text.replace("%", "%%"), **how)


def _how(kind: Any) -> dict[str, Any]:
    """Return how an option of some type is read."""
    how: dict[str, Any] = {}
    if kind is bool:
        how["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is Literal:
        how["choices"] = get_args(kind)
    elif get_origin(kind) in SEVERAL:
        how |= {"nargs": "+", "metavar": "ID"}
        if kind != tuple[str, ...]:  # the others are empty unless something is given
            how["default"] = argparse.SUPPRESS
        if get_origin(kind) is dict:
            how |= {"metavar": "KIND=PROBABILITY", "type": _fault}
    elif kind == datetime | None:
        now = datetime.now(UTC).replace(microsecond=0)
        how |= {"metavar": "ISO8601", "type": datetime.fromisoformat, "default": now}
    elif kind in {int, float, str}:
        how |= {"type": kind, "metavar": kind.__name__.upper()}
    else:
        how |= {"type": _number_or_none, "metavar": "INT|none"}
    return how


def _fault(text: str) -> tuple[str, float]:
    kind, _, probability = text.partition("=")
    return kind, float(probability)


def _number_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _options(arguments: dict[str, Any], parser: argparse.ArgumentParser) -> Options:
    values = {}
    for name, kind in get_type_hints(Options).items():
        if name in arguments:
            several = get_origin(kind)
            values[name] = several(arguments[name]) if several in SEVERAL else arguments[name]
    try:
        return Options(**values)
    except ValueError as error:
        parser.error(f"--faults: {error}")


def _stop_at_end_of_input(stop: Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; `argv` defaults to the command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    given = vars(arguments)
    options = _options(given, parser)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    project = generate(**{name: given[name] for name in signature(generate).parameters})
    try:
        sandbox = Sandbox(project, options, port=arguments.port)
    except OSError as error:
        parser.error(f"--port {arguments.port}: {error.strerror}")
    with sandbox:
        ready = {"ready": True, "url": sandbox.url, "api_key": sandbox.api_key}
        print(json.dumps(ready | project.counts), flush=True)
        if arguments.until_stdin_closes:
            Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
