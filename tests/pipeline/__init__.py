"""Running the real Meltano against local stand-ins of BugsPulse and Snowflake."""
