"""Run the tap with ``python -m tap_bugspulse``."""

from tap_bugspulse.tap import TapBugsPulse

TapBugsPulse.cli()
