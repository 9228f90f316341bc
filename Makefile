# Everything is installed inside the checkout, see scripts/setup.sh.

.PHONY: help setup demo test test-all test-slow test-snowflake coverage bench lint audit wheel test-wheel test-image hub lock clean

# The many processes of the tests would compile the tap again, each for itself.
unexport PYTHONDONTWRITEBYTECODE

COVERED = $(addprefix tests/test_,$(addsuffix .py,changes concurrency corporate edges \
	errors http lanes layers numbers odd_runs pages replication resume sdk sequences settings tap))

help:
	@echo 'make demo    load a made-up BugsPulse project into an emulated Snowflake, print a report'
	@echo 'make test    run the quick tests and one load by Meltano; a good minute'
	@echo 'make test-all  run these, all loads, what takes long, Airflow, Dagster, dbt and Streamlit, which it installs'
	@echo 'make test-slow  run the tests that wait for real minutes'
	@echo 'make test-snowflake  load into a Snowflake account of yours, into a schema of its own'
	@echo 'make coverage  measure which branches the tests of the tap reach; minutes'
	@echo 'make bench   measure the tap next to a stock SDK tap; about half an hour'
	@echo 'make lint    run the linters'
	@echo 'make audit   audit the workflows under .github/'
	@echo 'make wheel   build the wheel and the source distribution into dist/'
	@echo 'make test-wheel  run the quick tests on the built wheel, with the Python that PYTHON names'
	@echo 'make test-image  build the image of examples/kubernetes with Docker, and load with it'
	@echo 'make hub     write the definition for MeltanoHub from what the tap says of itself'
	@echo 'make setup   install what these need, into .venv, .venv-meltano and .meltano'
	@echo 'make lock    resolve dependencies anew into constraints/ (needs uv)'
	@echo 'make clean   remove what these installed and built; output/ and the state of loads stay'

setup:
	@sh scripts/setup.sh tap meltano

demo:
	@sh scripts/demo.sh

# Some tests wait, so that four at once keep two processors busy.
test: setup
	.venv/bin/python -m pytest -n 4 --dist loadgroup

test-all: setup
	@sh scripts/setup.sh airflow dagster dbt streamlit
	.venv/bin/python -m pytest -n 3 --dist loadgroup -m 'not (slow or account)'

test-slow: setup
	.venv/bin/python -m pytest -m slow

test-snowflake:
	@sh scripts/test_snowflake.sh

# The tests of the tap itself: those of the pipeline run an installed one.
coverage:
	@sh scripts/setup.sh tap
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest -n 2 --dist loadfile -m 'not slow' $(COVERED)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

bench:
	@sh scripts/setup.sh tap
	@.venv/bin/python -m benchmarks

lint:
	@sh scripts/setup.sh tap
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

audit:
	@sh scripts/setup.sh tap
	@sh scripts/audit.sh

wheel:
	@sh scripts/setup.sh tap
	rm -rf dist
	.venv/bin/hatchling build

test-wheel:
	@sh scripts/test_wheel.sh

test-image:
	@sh scripts/setup.sh tap
	@sh scripts/test_image.sh

hub:
	@sh scripts/setup.sh tap
	.venv/bin/python scripts/hub_definition.py >docs/hub/tap-bugspulse.yml

lock:
	@sh scripts/lock.sh

# The state of one's own loads, .meltano/meltano.db, and their rows in output/ stay.
clean:
	rm -rf .venv .venv-meltano .venv-airflow .venv-dagster .venv-dbt .venv-streamlit .demo dist \
		.meltano/extractors .meltano/loaders .meltano/utilities .meltano/home \
		.meltano/setup.log .meltano/.stamp
