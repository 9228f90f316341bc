"""Run the dashboard of examples/streamlit, in an environment of its own, without a browser.

    .venv-streamlit/bin/python -m tests.pipeline.dashboard '[{}, {"Version": ["2.1.0"]}]'

opens the app, chooses what each object says, and prints for each what is then shown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parents[2] / "examples" / "streamlit" / "bugspulse_app.py"
SECONDS = 60


def choose(app: AppTest, choice: dict[str, Any]) -> None:
    """Choose something in each of some fields, by their labels."""
    fields = [*app.sidebar.multiselect, *app.sidebar.selectbox, *app.toggle]
    for field in fields:
        if field.label in choice:
            field.set_value(choice[field.label])
    app.run(timeout=SECONDS)


def shown(app: AppTest) -> dict[str, Any]:
    """Return what the app shows."""
    return {
        "errors": [one.message for one in app.exception],
        "metrics": {one.label: [one.value, one.help] for one in app.metric},
        "texts": [one.value for one in app.markdown],
        "tables": [
            json.loads(one.value.to_json(orient="records", date_format="iso"))
            for one in app.dataframe
        ],
        "choices": {one.label: one.options for one in [*app.multiselect, *app.selectbox]},
    }


def main() -> None:
    """Print what is shown after each choice."""
    app = AppTest.from_file(str(APP), default_timeout=SECONDS).run()
    answers = []
    for choice in json.loads(sys.argv[1]):
        if choice:
            choose(app, choice)
        answers.append(shown(app))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
