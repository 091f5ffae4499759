#!/usr/bin/env bash
# Builds the web app into src/snapgen/web/app, and exports the bundled model for it.
# SNAPGEN=/path/to/snapgen names the program that exports.
set -euo pipefail
cd "$(dirname "$0")/.."
app=src/snapgen/web/app
snapgen=${SNAPGEN:-.venv/bin/snapgen}

scripts/install_node.sh
npm ci --prefix web --ignore-scripts --no-audit --no-fund --silent
mkdir -p "$app"
find "$app" -mindepth 1 -maxdepth 1 ! -name model -exec rm -r {} +
npm run build --prefix web --silent -- --logLevel warn

# The export takes minutes: it is made anew only after a change of the model or of the code that exports it.
if [ ! -e "$app/model/bundle.json" ] ||
    [ -n "$(find src/snapgen/{bundled,export,models,text} src/snapgen/runtime/bundle.py -newer "$app/model/bundle.json" -type f ! -name '*.pyc')" ]; then
    "$snapgen" export mini "$app/model" --target onnx >/dev/null
fi
