"""What surrounds a run on the command line: its files, its signals, its last line."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import signal
import sys
import typing as t

import requests
from singer_sdk.exceptions import ConfigurationError, SingerSDKError

if t.TYPE_CHECKING:
    import logging
    from collections.abc import Iterator
    from types import FrameType


GARBAGE = 50_000  # objects that have come before garbage is looked for
ARENAS = -8  # glibc's M_ARENA_MAX


def spare_memory() -> None:
    """Have Python look for garbage seldom, and threads share what they have freed.

    Rows leave no cycles behind, and what the imports made stays: looking for garbage in
    both again and again would take a fifth of the time for each row. Each thread that
    reads answers would keep some of the memory of the largest, where glibc lets it.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE)
    with contextlib.suppress(AttributeError):  # other C libraries have no such setting
        ctypes.CDLL(None).mallopt(ARENAS, 1)


def json_file(name: str, file: t.IO[str], logger: logging.Logger) -> t.IO[str]:
    """Give the object in a file; without one the SDK would end with a traceback."""
    try:
        content = json.loads(file.read(), parse_constant=lambda _: None)
    except ValueError:
        msg = f"the file given with --{name} is not JSON: restore it, or run without it"
        if name == "state":
            msg += " to load everything again"
        raise ConfigurationError(msg) from None
    if isinstance(content, dict) and content.get("type") == "STATE":
        content = content.get("value")  # a whole message, as the tap writes it
    if not isinstance(content, dict):
        logger.warning("The file given with --%s holds no object: ignored", name)
        content = {}
    return io.StringIO(json.dumps(content))


@contextlib.contextmanager
def ticking() -> Iterator[None]:
    """Let Python look for signals once a second, also while it waits.

    A signal that comes in the instant before a wait begins does not interrupt it, and
    would be noticed only when the wait is over.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def end_on_signals(logger: logging.Logger) -> None:
    """End on a signal as long as there is no state to write yet."""

    def end(signum: int, _: FrameType | None) -> None:
        logger.warning("Stopped by %s", signal.Signals(signum).name)
        raise SystemExit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)


@contextlib.contextmanager
def errors_as_one_line(logger: logging.Logger) -> Iterator[None]:
    """End the process with one line for a person instead of a traceback."""
    try:
        yield
    except (SingerSDKError, requests.RequestException) as exc:
        logger.critical("%s", exc)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            logger.critical("the target has closed its input: look for its own error above")
        else:
            logger.critical("the output cannot be written: %s", exc.strerror)
        # Python would complain once more when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        return
    sys.exit(1)
