"""The examples of kernels/README.md run, and give what they say they replace."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from i2c_fast import kernels

TEXT = (Path(kernels.__file__).parent / "README.md").read_text()
SETUP, *EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def executed(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names there are after the code has run, on copies of tensors, for some it changes."""
    names = {name: _copy(value) if isinstance(value, Tensor) else value for name, value in names.items()}
    torch.manual_seed(0)
    exec(compile(code, "kernels/README.md", "exec"), names)
    return names


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@pytest.fixture(scope="module")
def before() -> list[dict[str, Any]]:
    """The names that each example finds: those of all before it."""
    found = [executed(SETUP, {})]
    for example in EXAMPLES:
        found.append(executed(example.partition("# instead of\n")[0], found[-1]))
    return found


@pytest.mark.parametrize("i", range(len(EXAMPLES)), ids=[example.partition("\n")[0] for example in EXAMPLES])
def test_example_gives_what_it_replaces(before: list[dict[str, Any]], i: int) -> None:
    ours, _, theirs = EXAMPLES[i].partition("# instead of\n")
    got = before[i + 1]
    expected = executed(theirs, got | before[i])  # with the inputs that the example makes itself
    assigned = set(re.findall(r"^([\w, ]+?)(?:\[.*\])? [+-]?= ", theirs, re.MULTILINE))
    compared = {one for names in assigned for one in names.split(", ")} & set(re.findall(r"\w+", ours))
    assert compared
    for name in compared:
        torch.testing.assert_close(got[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_every_op_has_an_example() -> None:
    ops = {name for name in kernels.__all__ if name.islower() and not name.endswith("_reference")}
    assert ops <= {name for example in EXAMPLES for name in re.findall(r"\w+", example.partition("# instead of")[0])}
