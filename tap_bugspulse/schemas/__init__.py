"""JSON Schemas, one file per stream, named after it."""
