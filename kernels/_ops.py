"""How launchers become torch ops: opaque to the compiler, bypassed where nothing is compiled."""

from collections.abc import Callable
from typing import Any

import torch

# Definitions live as long as this object.
_LIBRARY = torch.library.Library("i2c_fast", "FRAGMENT")


def define_op(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``i2c_fast::<schema>`` and return the function that autograd functions call.

    Under torch.compile that is the registered op, one opaque node with `fake` for its shapes; otherwise the launcher
    itself, which spares the dispatcher's host time. The op runs the same launcher on every device.

    Args:
        schema: of the op, mutation declared (``Tensor(a!)``).
        launch: runs the kernel, or the reference where Triton does not run.
        fake: gives empty outputs of the right shape, dtype and strides.
    """
    name = schema.partition("(")[0]
    launch = _on_the_tensors_device(launch)
    # Kernels take any strides: without this tag Inductor copies F back to the strides it was traced with.
    _LIBRARY.define(schema, tags=(torch.Tag.flexible_layout,))
    _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"i2c_fast::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.i2c_fast, name).default

    def call(*arguments: Any) -> Any:
        return op(*arguments) if torch.compiler.is_compiling() else launch(*arguments)

    return call


def _on_the_tensors_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device; this makes it the arguments' own where a process has several."""

    def guarded(*arguments: Any) -> Any:
        index = next(argument.get_device() for argument in arguments if isinstance(argument, torch.Tensor))
        if index < 0 or index == torch.cuda.current_device():  # −1: no GPU's
            return launch(*arguments)
        with torch.cuda.device(index):
            return launch(*arguments)

    return guarded
