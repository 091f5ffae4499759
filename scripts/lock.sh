#!/usr/bin/env bash
# Pins the newest versions that pyproject.toml allows for running, training, evaluating and testing: lock.sh FILE
set -euo pipefail
cd "$(dirname "$0")/.."
file=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

scripts/make_environment.sh "$work/environment"
"$work/environment/bin/python" -m pip install --quiet --upgrade pip
"$work/environment/bin/python" -m pip install --quiet --dry-run --ignore-installed --report "$work/report.json" \
    ".[train,eval,onnx,export,dev]"
"$work/environment/bin/python" scripts/write_lock.py "$work/report.json" >"$work/lock"
mv "$work/lock" "$file"
