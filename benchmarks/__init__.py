"""What the tap costs next to a stock SDK tap: `python -m benchmarks --help`."""
