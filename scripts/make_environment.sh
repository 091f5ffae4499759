#!/usr/bin/env bash
# Makes a virtual environment with the first Python 3.11 or newer that it finds: make_environment.sh FOLDER
# PYTHON=/path/to/python chooses another one.
set -euo pipefail
folder=$1

python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    # Run it: a version manager's shim may be on the path without a Python behind it.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "make_environment.sh: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships these modules in a separate package.
    "$(dirname "$0")/apt_install.sh" python3-venv
fi
"$python" -m venv "$folder"
