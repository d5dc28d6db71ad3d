"""What every op shares: argument checks that cost no synchronization, label masks, the two distances."""

import os
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Distance = Literal["squared_l2", "l2"]
TotalReduction = Literal["mean", "sum"]
Reduction = Literal["none", "mean", "sum"]

IGNORED_LABEL = -100
L2_EPS = 1e-6

# Looking at label values on the host waits for the device, so it is done only for whoever hunts a NaN.
DEBUG = os.environ.get("I2C_FAST_DEBUG") == "1"


def check_tensor(name: str, tensor: Tensor, dims: int | tuple[int, ...], integer: bool = False) -> None:
    """Raise ValueError, with shape, dtype and device, unless `tensor` has `dims` dimensions and that kind of dtype.

    Integers are int32 or int64: the smaller types cannot index, and uint8 cannot hold −100.
    """
    allowed = (dims,) if isinstance(dims, int) else dims
    right_dtype = tensor.dtype in (torch.int32, torch.int64) if integer else tensor.is_floating_point()
    if tensor.dim() not in allowed or not right_dtype:
        kind = "int32 or int64" if integer else "floating-point"
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must be {kind} with {wanted} dimensions, got {describe(tensor)}")


def check_same(name: str, size: int, other_name: str, other_size: int) -> None:
    """Raise ValueError unless two sizes that must agree do."""
    if size != other_size:
        raise ValueError(f"{name} is {size} but {other_name} is {other_size}; they must be equal")


def check_device(**tensors: Tensor | None) -> None:
    """Raise ValueError, naming each device, unless all given tensors are on one device."""
    if len({tensor.device for tensor in tensors.values() if tensor is not None}) > 1:
        devices = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items() if tensor is not None)
        raise ValueError(f"tensors must share one device, got {devices}")


def check_labels(labels: Tensor, classes: int, ignore_index: int = IGNORED_LABEL) -> None:
    """With I2C_FAST_DEBUG=1, raise ValueError that names the first label outside 0…classes−1 (but `ignore_index`)."""
    if DEBUG:
        wrong = labels[(labels != ignore_index) & ~within(labels, classes)]
        if wrong.numel():
            raise ValueError(f"label {int(wrong.flatten()[0])} is outside 0…{classes - 1} (and not {ignore_index})")


def check_indices(indices: Tensor, pixels: int) -> None:
    """With I2C_FAST_DEBUG=1, raise ValueError that names the first index outside 0…pixels−1."""
    if DEBUG:
        wrong = indices[~within(indices, pixels)]
        if wrong.numel():
            raise ValueError(f"index {int(wrong[0])} is outside 0…{pixels - 1}")


def check_distance(distance: str, reduction: str = "mean", reductions: Any = Reduction) -> None:
    """Raise ValueError unless `distance` and `reduction` are of those that exist."""
    for name, choice, choices in (("distance", distance, Distance), ("reduction", reduction, reductions)):
        if choice not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {choice!r}")


def mask_ignored(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels in which −100 is what is ignored; a −100 that is not becomes −1, which is out of range as well."""
    if ignore_index == IGNORED_LABEL:
        return labels
    return labels.masked_fill(labels == IGNORED_LABEL, -1).masked_fill(labels == ignore_index, IGNORED_LABEL)


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device of a tensor, for error messages."""
    return f"shape {list(tensor.shape)}, {tensor.dtype}, {tensor.device}"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for everything but fp64, which stays what it is so that gradients can be checked."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def within(labels: Tensor, classes: int) -> Tensor:
    """Mask of the labels that name a row of a table of `classes` rows."""
    return (labels >= 0) & (labels < classes)


def same_class(labels: Tensor) -> Tensor:
    """[N, N] mask of image pairs of one class; ignored images belong to none."""
    return (labels[:, None] == labels) & (labels != IGNORED_LABEL)


def earlier(same: Tensor) -> Tensor:
    """[N] how many images before each one, in batch order, are in its class."""
    return same.tril(-1).sum(1)


def first_true(mask: Tensor) -> Tensor:
    """[N] column of the first True in each row of an [N, N] mask, 0 where there is none."""
    return mask.int().argmax(1) if len(mask) else mask.new_zeros(0, dtype=torch.int64)


def reduce_terms(terms: Tensor, count: Tensor, reduction: str) -> Tensor:
    """Mean over the `count` terms there are (0 where there are none), their sum, or the terms themselves."""
    if reduction == "none":
        return terms
    return terms.sum() / count.clamp(min=1) if reduction == "mean" else terms.sum()


def measure(difference: Tensor, distance: Distance) -> Tensor:
    """Length of `difference` along its last dimension.

    ``squared_l2`` is the paper's ‖d‖² (Eq. 1, 5). ``l2`` is the released ‖d + 1e-6‖: the offset also keeps the gradient
    finite where two points coincide.
    """
    if distance == "squared_l2":
        return difference.square().sum(-1)
    return (difference + L2_EPS).square().sum(-1).sqrt()
