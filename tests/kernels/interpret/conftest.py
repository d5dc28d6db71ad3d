"""Collected only by a pytest started with I2C_FAST_BACKEND=interpret: Triton reads the choice when it is imported."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if os.environ.get("I2C_FAST_BACKEND") == "interpret" and find_spec("triton") else ["test_*.py"]
