"""Memory that a configuration needs at least, compared with what is free before any of it is asked for.

A GPU says no, and `runtime.memory_errors` makes one line of that. Linux promises a process what it asks for, and kills
it when it uses that: so what lies in the host's memory is estimated.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..errors import UserError
from ..models import Localizer
from ..runtime import AUTOCAST, Runtime
from .schema import lay_out

GIB = 2**30

# Bytes of activations over bytes of input that no backbone reaches (ResNet50 has 370): below, none are counted.
_MOST_ACTIVATIONS = 500


def check_training_memory(config: Config, model: Localizer, runtime: Runtime) -> None:
    """Refuse training batches that cannot fit in the host's memory: raises a UserError that names the keys to lower."""
    data, batch = config.data, config.batch
    images = batch.classes * batch.images // runtime.world.size
    ahead = data.workers * data.prefetch
    needed: float = 3 * data.image_size**2 * images * (ahead + 1)
    free = free_memory()
    if runtime.device.type == "cpu":
        needed += _activations(config, model, images // batch.micro_batches, runtime, free)
    if needed > free:
        raise UserError(
            f"steps of {images:,} images of {data.image_size} px, with {ahead} batches loaded ahead, need at least "
            f"{needed / GIB:.0f} GiB of memory, {free / GIB:.0f} GiB are free; lower batch.classes, batch.images, "
            "data.image_size or data.prefetch, or raise batch.micro_batches"
        )


def check_evaluation_memory(config: Config, model: Localizer, images: int, runtime: Runtime) -> None:
    """The same of evaluation's batches, on a split of so many images."""
    data, batch = config.data, min(config.eval.batch, images)
    ahead = data.workers * data.prefetch
    pixels = 3 * data.image_size**2
    needed = pixels * batch * (ahead + 1)
    if runtime.device.type == "cpu":  # the input as floats, and the features
        needed += 4 * batch * (pixels + model.feature_dim * (data.image_size // model.stride) ** 2)
    free = free_memory()
    if needed > free:
        raise UserError(
            f"evaluating {batch:,} images of {data.image_size} px at once, with {ahead} batches loaded ahead, needs at "
            f"least {needed / GIB:.0f} GiB of memory, {free / GIB:.0f} GiB are free; lower eval.batch, "
            "data.image_size or data.prefetch"
        )


def free_memory() -> float:
    """Bytes that this process can still have, swap included; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
        free: float = 1024 * (facts["MemAvailable"] + facts["SwapFree"])
    except (OSError, LookupError, ValueError):
        return float("inf")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            free = min(free, int(limit.read_text()))
        except (OSError, ValueError):  # "max" is none
            continue
    return free


def _activations(config: Config, model: Localizer, images: int, runtime: Runtime, free: float) -> float:
    """Bytes of what the model's forward keeps for its backward, in a batch of so many images."""
    side = config.data.image_size
    if 12 * side**2 * images * _MOST_ACTIVATIONS < free:
        return 0.0
    copy = lay_out(config, model.num_classes).train()
    if not next(copy.parameters()).is_meta:
        return 0.0
    kept = {parameter.untyped_storage()._cdata: 0 for parameter in copy.parameters()}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that no other has its address
        kept.setdefault(storage._cdata, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = copy(torch.empty(2, 3, side, side, dtype=torch.uint8, device="meta"))
    del logits
    bytes_of_four = {**dict.fromkeys(AUTOCAST, 2), "fp64": 8}.get(runtime.precision, 4)
    # Inductor computes some of it anew in the backward.
    return sum(kept.values()) / 2 * images * bytes_of_four / 4 / (2 if config.run.compile else 1)
