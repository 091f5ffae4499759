#!/usr/bin/env bash
# Makes sure that a Chromium without a window is there: the tests vote on the human study's page in it.
set -euo pipefail

if command -v chromium-headless-shell chromium google-chrome >/dev/null; then
    exit 0
fi
"$(dirname "$0")/apt_install.sh" chromium-headless-shell
