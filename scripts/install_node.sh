#!/usr/bin/env bash
# Makes sure that Node.js 18 or newer and npm are installed: the web app is built and tested with them.
set -euo pipefail

if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
    "$(dirname "$0")/apt_install.sh" nodejs npm
fi
if ! node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)'; then
    echo "install_node.sh: Node.js 18 or newer is needed, this is $(node --version): see https://nodejs.org" >&2
    exit 1
fi
