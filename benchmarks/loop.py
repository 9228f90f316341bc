"""The ceiling: what is left when only the work is done that no tap can leave out.

``python -m benchmarks.loop URL STREAM...`` asks for one page after the other and writes
each row as a RECORD message. It has no SDK, no schema, no state, no retry and no limit.
"""

from __future__ import annotations

import json
import sys
import typing as t

import requests

if t.TYPE_CHECKING:
    from collections.abc import Iterator


def pages(session: requests.Session, address: str) -> Iterator[list[dict[str, t.Any]]]:
    """Yield the rows of a listing, page by page."""
    number = last = 1
    while number <= last:
        answer = session.get(address, params={"limit": 1000, "page": number}, timeout=60)
        answer.raise_for_status()
        body = json.loads(answer.content)
        yield body["data"]
        number, last = number + 1, body["pages"]


def main() -> None:
    """Write all rows of the streams that the command line names."""
    url, *streams = sys.argv[1:]
    with requests.Session() as session:
        for stream in streams:
            for rows in pages(session, f"{url}/{stream}"):
                for row in rows:
                    message = {"type": "RECORD", "stream": stream, "record": row}
                    sys.stdout.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
