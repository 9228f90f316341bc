"""Run the bench: ``python -m benchmarks``, explained by ``--help``."""

from __future__ import annotations

import argparse
import tempfile
import typing as t
from pathlib import Path

from benchmarks.bench import Bench, machine
from benchmarks.parts import PARTS

if t.TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Measures what the tap costs, next to a stock SDK tap, and prints it as Markdown.

All parts together take about half an hour; --only and --skip choose among them. The part
limit waits for real minutes. Where something is wanted of a number, it stands beside or
below it, for the default sizes; nothing is judged. Ratios within one run can be compared;
numbers of two machines cannot.
"""
SIZES = {
    "--sessions": (200_000, "of cpu"),
    "--network": (300_000, "of cpu"),
    "--network-small": (40_000, "of memory"),
    "--event-sessions": (2_000, "of events"),
    "--state-sessions": (2_000, "of nothing_new"),
    # A whole number of minutes' allowances less a few requests: were it just that, the
    # first request that is not needed would cost a minute.
    "--limit-sessions": (195, "of limit"),
    "--limit-network": (80_000, "of limit"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each tap and part")
    for name, (size, part) in SIZES.items():
        parser.add_argument(name, type=int, default=size, help=f"{part}; {size:,}")
    parser.add_argument(
        "--concurrency", type=int, help="the tap's setting, in events, growing and limit"
    )
    return parser


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the tables are what the bench is for


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for and print their tables as they are done."""
    given = _parser().parse_args(arguments)
    _say(f"Measured on: {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name in given.only:
            if name not in given.skip:
                _say("")
                for text in PARTS[name](bench, given):
                    _say(text)


if __name__ == "__main__":
    main()
