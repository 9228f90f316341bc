"""Singer tap for BugsPulse."""
