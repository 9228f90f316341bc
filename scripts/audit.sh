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

offline=--offline
[ -z "${GH_TOKEN:-}" ] || offline=''
.venv/bin/zizmor --persona pedantic --strict-collection $offline .github
form vendor.github-workflows .github/workflows/*.yml
form custom.github-workflows-require-timeout .github/workflows/*.yml
form vendor.dependabot .github/dependabot.yml
form vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
form vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
