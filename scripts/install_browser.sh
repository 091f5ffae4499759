#!/usr/bin/env bash
# Makes sure that a headless Chromium is installed: the tests use it to vote on the human study's page.
set -euo pipefail

if command -v chromium-headless-shell chromium google-chrome >/dev/null; then
    exit 0
fi
"$(dirname "$0")/apt_install.sh" chromium-headless-shell
