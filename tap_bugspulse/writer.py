"""Writing messages: many at once, and always whole lines."""

from __future__ import annotations

import sys
import typing as t

from singer_sdk.contrib.msgspec import MsgSpecWriter, encoder
from singer_sdk.singerlib.messages import Message, RecordMessage
from typing_extensions import override

AT_ONCE = 50  # records: what was made of them is still in the cache when it is encoded


class WholeMessageWriter(MsgSpecWriter):
    """Writes records many at once, in whole lines.

    None is kept back while the next answer is waited for, nor when another message is
    written. A signal that comes while something is written waits for its end.
    """

    def __init__(self) -> None:
        """Begin with nothing being written."""
        super().__init__()
        self.is_writing = self.is_ending = False
        self.after: t.Callable[[], None] | None = None
        self._messages: list[dict[str, t.Any]] = []

    @override
    def write_message(self, message: Message) -> None:
        self._messages.append(message.to_dict())
        if len(self._messages) >= AT_ONCE or not isinstance(message, RecordMessage):
            self.flush()

    def flush(self) -> None:
        """Write what is kept back.

        Raises:
            OSError: If nobody reads it, or there is no room for it.
        """
        self.is_writing = True
        left = memoryview(encoder.encode_lines(self._messages))
        self._messages = []
        while left:  # PYTHONUNBUFFERED has it take no more than the pipe has room for
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.flush()
        self.is_writing = False
        if self.after is not None:
            self.after()
