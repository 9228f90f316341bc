# Everything is installed inside the checkout, see scripts/setup.sh.

.PHONY: help setup demo test lint lock clean

help:
	@echo 'make demo    load a made-up BugsPulse project into an emulated Snowflake, print a report'
	@echo 'make test    run the tests'
	@echo 'make lint    run the linters'
	@echo 'make setup   install what these need, into .venv, .venv-meltano and .meltano'
	@echo 'make lock    resolve dependencies anew into constraints/ (needs uv)'
	@echo 'make clean   remove everything that these made'

setup:
	@sh scripts/setup.sh tap meltano

demo:
	@sh scripts/demo.sh

test: setup
	.venv/bin/python -m pytest

lint:
	@sh scripts/setup.sh tap
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

lock:
	@sh scripts/lock.sh

clean:
	rm -rf .venv .venv-meltano .meltano .demo output
