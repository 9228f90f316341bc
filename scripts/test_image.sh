#!/bin/sh
# Build the image of examples/kubernetes and load a made-up project with it, from an API on
# this machine. Needs Docker on Linux, and the network for what the image is made of.
set -eu

cd "$(dirname "$0")/.."

image=bugspulse-meltano:test
folder=$(mktemp -d)
sandbox=''
finish() {
    [ -z "$sandbox" ] || kill "$sandbox" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

docker build --file examples/kubernetes/Dockerfile --build-arg MELTANO='meltano[s3]' --tag "$image" .

.venv/bin/python -m tests.sandbox --requests-per-minute none --sessions 50 --crash-groups 3 \
    >"$folder/ready" &
sandbox=$!
waited=0
until [ -s "$folder/ready" ]; do
    waited=$((waited + 1))
    [ "$waited" -le 60 ] || exit 1
    sleep 1
done
say() {
    .venv/bin/python -c "import json, sys; ready = json.load(open(sys.argv[1])); print($1)" \
        "$folder/ready"
}

# The image has a user of its own, who is to write here.
mkdir -m 777 "$folder/output"
docker run --rm --network host --volume "$folder/output:/output" \
    --env TAP_BUGSPULSE_API_URL="$(say 'ready["url"]')" \
    --env TAP_BUGSPULSE_API_KEY="$(say 'ready["api_key"]')" \
    --env TAP_BUGSPULSE_REQUESTS_PER_MINUTE=60000 \
    --env TARGET_JSONL_DESTINATION_PATH=/output \
    "$image" --environment=prod run tap-bugspulse target-jsonl

for table in sessions crashes network events; do
    rows=$(wc -l <"$folder/output/$table.jsonl")
    echo "$table: $rows rows"
    test "$rows" -eq "$(say "ready[\"$table\"]")"
done
echo "user: $(docker run --rm --entrypoint id "$image" -u)"
test "$(docker run --rm --entrypoint id "$image" -u)" -ne 0
docker run --rm --entrypoint python "$image" -c 'import boto3'
