"""What this machine and installation are: printed by ``i2c-fast env``, kept beside every measured figure."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = (
    "torch", "triton", "torchvision", "numpy", "opencv-python-headless", "pillow", "nvidia-dali-cuda130",
    "nvidia-dali-cuda120", "apex",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Versions, processor, GPU with driver, and the commit if this is a clone."""
    found = {"i2c-fast": _version("i2c-fast"), "python": platform.python_version()}
    found |= {package: _version(package) for package in PACKAGES}
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{torch.cuda.device_count()} × {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
        driver = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["cuda"] = f"{torch.version.cuda}, driver {driver}"
    else:
        found["gpu"] = "none that torch can use"
    found["commit"] = _commit()
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    # Installed somewhere inside another project's clone, that project's commit would be found.
    if not (root / ".git").exists():
        return "not a clone"
    return _run("git", "-C", str(root), "describe", "--always", "--dirty") or "unknown (no git)"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _run(*command: str) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return output.splitlines()[0].strip() if output else ""
    except (OSError, subprocess.SubprocessError):
        return ""
