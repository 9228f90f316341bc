"""The tests of tap-bugspulse, and the sandbox they talk to."""
