"""Runs the kernels' own tests through Triton's interpreter, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_kernels_agree_with_their_references_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "interpret")]
    done = subprocess.run(
        command, env={**os.environ, "I2C_FAST_BACKEND": "interpret"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
