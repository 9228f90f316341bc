"""Run the tap with ``python -m tap_bugspulse``."""

from __future__ import annotations

from tap_bugspulse.tap import TapBugsPulse

TapBugsPulse.cli()
