#!/usr/bin/env bash
# Installs Debian packages if the user may, else says in one line which to install: apt_install.sh PACKAGE...
set -euo pipefail

root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null; then
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
else
    echo "apt_install.sh: please install (Debian's name): $*" >&2
    exit 1
fi
