"""A local BugsPulse: the Export API over real HTTP, holding made-up, believable data.

`generate` makes a `Project`, `Sandbox` serves it on loopback, `Options` says how the
API behaves where its reference leaves that open. On the command line:
`python -m tests.sandbox --help`.
"""

from tests.sandbox.options import FAULTS, Options, Request
from tests.sandbox.project import Project, generate, generate_once
from tests.sandbox.server import Sandbox, misfit

__all__ = [
    "FAULTS",
    "Options",
    "Project",
    "Request",
    "Sandbox",
    "generate",
    "generate_once",
    "misfit",
]
