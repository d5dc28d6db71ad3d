"""scripts/install_apex says in one line why it cannot build apex."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_apex"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_torch_without_cuda_is_refused() -> None:
    result = subprocess.run([SCRIPT], env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}, capture_output=True)
    assert result.returncode == 2
    assert b"is built without CUDA, which apex's kernels need" in result.stderr
    assert result.stderr.count(b"\n") == 1
