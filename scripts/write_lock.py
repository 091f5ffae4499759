"""Print pip's installation report as a constraints file: one `name==version` per line, without this package."""

import json
import sys
from pathlib import Path

HEADER = """\
# Every version that the tests run with (running, training, evaluating, exporting, testing); written by `make lock`.
# pip install -c requirements.lock .
"""


def locked_lines(report: dict) -> list[str]:
    """Sorted pins of the packages that `report` would install."""
    packages = [entry["metadata"] for entry in report["install"]]
    # A local version (torch's "+cpu") is a build of the same release: the pin leaves the choice of build open.
    pins = {package["name"].lower(): package["version"].partition("+")[0] for package in packages}
    return [f"{name}=={version}" for name, version in sorted(pins.items()) if name != "snapgen"]


if __name__ == "__main__":
    report = json.loads(Path(sys.argv[1]).read_text())
    print(HEADER + "\n".join(locked_lines(report)))
