"""The four streams of the Export API."""

from __future__ import annotations

import typing as t

from singer_sdk import SchemaDirectory, StreamSchema
from typing_extensions import override

from tap_bugspulse import schemas
from tap_bugspulse.client import BugsPulseStream

SCHEMAS = SchemaDirectory(schemas)


class Crashes(BugsPulseStream):
    name = "crashes"
    path = "/crashes"
    primary_keys = ("id",)
    schema = StreamSchema(SCHEMAS)


class Network(BugsPulseStream):
    name = "network"
    path = "/network"
    primary_keys = ("id",)
    replication_key = "timestamp"
    schema = StreamSchema(SCHEMAS)


class Sessions(BugsPulseStream):
    name = "sessions"
    path = "/sessions"
    primary_keys = ("id",)
    replication_key = "startedAt"
    schema = StreamSchema(SCHEMAS)

    @override
    def get_child_context(self, record, context):
        return {"sessionId": record["id"]}


class Events(BugsPulseStream):
    name = "events"
    path = "/events"
    primary_keys = ("sessionId", "id")
    schema = StreamSchema(SCHEMAS)
    parent_stream_type = Sessions
    state_partitioning_keys = ()

    @override
    def post_process(self, row, context=None):
        return {"sessionId": context["sessionId"], **row}
