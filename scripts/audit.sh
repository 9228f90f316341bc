#!/bin/sh
# Audit what runs on GitHub: its security (zizmor) and its form (the published schemas).
# Without GH_TOKEN nothing is looked up, so the audit works offline; with it, zizmor also
# compares the pinned commits with their versions and with known vulnerabilities.
set -eu

cd "$(dirname "$0")/.."

form() {
    schema=$1
    shift
    .venv/bin/check-jsonschema --builtin-schema "$schema" "$@"
}

# Others copy it, so it is held to the same.
example=examples/github-actions/load.yml
offline=--offline
[ -z "${GH_TOKEN:-}" ] || offline=''
.venv/bin/zizmor --persona pedantic --strict-collection $offline .github "$example"
form vendor.github-workflows .github/workflows/*.yml "$example"
form custom.github-workflows-require-timeout .github/workflows/*.yml "$example"
form vendor.dependabot .github/dependabot.yml
form vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
form vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
