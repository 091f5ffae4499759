"""What all tests share: no network, and no more threads than a small shared machine has."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
