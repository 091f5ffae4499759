"""Page faults, counted: the system counts those of this process."""

import platform
import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from snapgen.machine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
x = torch.zeros(64 * 2**18)  # 64 MiB, above the largest block that glibc keeps by itself
for _ in range(16):  # until the heap has its size
    torch.relu(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.relu(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    faults = {
        case: int(subprocess.run([sys.executable, "-c", SCRIPT, case], capture_output=True, check=True).stdout)
        for case in ("kept", "default")
    }
    pages = 4 * 64 * 2**20 // resource.getpagesize()  # of the four results
    assert faults["default"] > pages / 2
    assert faults["kept"] < pages / 20
