"""Settings from the environment, as the SDK reads them, and what may be wrong there."""

from __future__ import annotations

import difflib
import json
import os
import typing as t

from singer_sdk.exceptions import ConfigurationError, ConfigValidationError

from tap_bugspulse.settings import CONFIG_SCHEMA, Settings, SettingsError

if t.TYPE_CHECKING:
    from collections.abc import Iterator

ENV_PREFIX = "TAP_BUGSPULSE_"


def checked(config: t.Mapping[str, t.Any]) -> Settings:
    """Read the tap's own settings.

    Raises:
        ConfigValidationError: If any of them cannot be used; it names all of these.
    """
    try:
        return Settings.from_config(config)
    except SettingsError as exc:
        raise ConfigValidationError(str(exc), errors=exc.problems, schema={}) from None


def names_of_objects(known: t.Mapping[str, t.Any]) -> list[str]:
    """Give the settings that are JSON objects."""
    return [name for name, setting in known.items() if "object" in setting["type"]]


def drop_empty_variables(known: t.Mapping[str, t.Any]) -> None:
    """Take a number or object that is set to nothing for one that is not set."""
    for name, setting in known.items():
        variable = ENV_PREFIX + name.upper()
        if "string" not in setting["type"] and os.environ.get(variable) == "":
            del os.environ[variable]


def check_environment(known: t.Mapping[str, t.Any]) -> None:
    """Find the variable that the SDK could not read.

    Raises:
        ConfigurationError: If it is a setting of the SDK.
        ConfigValidationError: If it is one of the tap's own.
    """
    config = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENV_PREFIX)
    }
    readers: dict[str, tuple[t.Callable[[str], object], str]] = {
        "object": (json.loads, "a JSON object"),
        "integer": (int, "a whole number"),
    }
    for name in known.keys() & config.keys() - CONFIG_SCHEMA["properties"].keys():
        for kind, (read, rule) in readers.items():
            if kind in known[name]["type"]:
                try:
                    read(config[name])
                except ValueError:
                    # Not the value: stream_map_config may hold the salt of a hash.
                    msg = f"{ENV_PREFIX}{name.upper()} must be {rule}"
                    raise ConfigurationError(msg) from None
    checked({"api_key": "bp_", **config})


def unknown_settings(
    config: t.Mapping[str, t.Any], known: t.Mapping[str, t.Any]
) -> Iterator[tuple[str, str]]:
    """Give each setting that does not exist, and what may have been meant."""
    # Meltano sets variables for its own extras, which begin with one more underscore,
    # and for each part of a setting that is an object.
    others = ("_", "LOGLEVEL", *(f"{name.upper()}_" for name in names_of_objects(known)))
    variables = {
        name.removeprefix(ENV_PREFIX) for name in os.environ if name.startswith(ENV_PREFIX)
    }
    for prefix, names, there in (
        ("", config, list(known)),
        (ENV_PREFIX, variables, [name.upper() for name in known]),
    ):
        for name in names:
            if name in there or (prefix and name.startswith(others)):
                continue
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else "see --about"
            yield prefix + name, hint
