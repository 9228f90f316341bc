"""Writes messages to stdout: many at once, and always whole lines."""

import sys
import typing as t
from datetime import UTC, datetime

import msgspec
from singer_sdk.contrib.msgspec import MsgSpecWriter, encoder
from singer_sdk.singerlib.messages import Message, RecordMessage
from typing_extensions import override

BATCH_SIZE = 200  # messages that are encoded and written at once


class RecordLine(msgspec.Struct, tag="RECORD"):
    """A RECORD message whose row is encoded as a struct, which is faster than a dict."""

    stream: str
    record: msgspec.Struct
    time_extracted: str


class WholeMessageWriter(MsgSpecWriter):
    """Writes records many at once, in whole lines.

    Records wait in a buffer, until the tap waits for an answer or writes another kind of message.
    A signal during a write has to wait: ``after_write`` is then called when the write has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = False
        self.after_write: t.Callable[[], None] | None = None
        self._messages: list[t.Any] = []
        self._extracted = ""

    @override
    def write_message(self, message: Message) -> None:
        self._messages.append(message.to_dict())
        if not isinstance(message, RecordMessage) or len(self._messages) >= BATCH_SIZE:
            self.flush()

    def write_row(self, stream: str, row: msgspec.Struct) -> None:
        """Write a row as a RECORD message of a stream, without making a dict of it."""
        if not self._messages:
            self._extracted = datetime.now(UTC).isoformat()
        self._messages.append(RecordLine(stream, row, self._extracted))
        if len(self._messages) >= BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write the messages in the buffer, or raise OSError if nobody reads them."""
        self.is_writing = True
        left = memoryview(encoder.encode_lines(self._messages))
        self._messages = []
        while left:  # with PYTHONUNBUFFERED, a write takes only what fits into the pipe
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.flush()
        self.is_writing = False
        if self.after_write is not None:
            self.after_write()
