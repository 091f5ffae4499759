#!/usr/bin/env bash
# Makes sure that the Noto Color Emoji font is installed: the training pictures are rendered with it.
set -euo pipefail

font=NotoColorEmoji.ttf
if [ -e "/usr/share/fonts/truetype/noto/$font" ] || fc-list 2>/dev/null | grep -q "$font"; then
    exit 0
fi
"$(dirname "$0")/apt_install.sh" fonts-noto-color-emoji
