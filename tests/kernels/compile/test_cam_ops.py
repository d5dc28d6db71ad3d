"""normalize_cam, label_cam and pooled_head as registered ops: what torch.compile sees of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from i2c_fast.kernels import label_cam, normalize_cam, pooled_head

LABELS = torch.tensor([[3, 0], [-100, 3], [1, 2]])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.repeat(1, 2, 1, 1)[:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}
BACKENDS = ["aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    torch._dynamo.reset()


def parameters() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, requires_grad=True), torch.randn(4, requires_grad=True)


def opcheck(name: str, *arguments: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.i2c_fast, name).default, arguments)


@pytest.mark.parametrize("view", [lambda m: m, lambda m: m.transpose(1, 2), lambda m: m[:1].expand(3, -1, -1)])
def test_opcheck_of_normalize_cam(view: Callable[[Tensor], Tensor]) -> None:
    maps = view(torch.randn(3, 4, 6))
    opcheck("normalize_cam", maps)
    opcheck("normalize_cam_backward", maps, torch.randn(maps.shape))


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [*((layout, torch.float32) for layout in LAYOUTS), ("sliced", torch.bfloat16), ("sliced", torch.float64)],
)
def test_opcheck_of_label_cam_and_pooled_head(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(3, 5, 4, 6, dtype=dtype))
    weight, bias = (tensor.detach() for tensor in parameters())
    gradient = torch.randn(3, 2, 4, 6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    opcheck("label_cam", x, weight, bias, LABELS)
    opcheck("label_cam", x, weight, None, LABELS)
    opcheck("label_cam_x_gradient", x, weight, LABELS, gradient)
    opcheck("label_cam_weight_gradient", x, LABELS, gradient, 4)
    opcheck("pooled_head", x, weight, bias, LABELS[:, 0], torch.float32)
    opcheck("pooled_head", x, weight, None, LABELS[:, 0], torch.bfloat16)


def objective(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """All three ops in one graph, each reaching the gradients."""
    logits, maps = pooled_head(torch.relu(x), weight, bias, labels[:, 0])
    cams = label_cam(x, weight, bias, labels[:, :1])
    seen = normalize_cam(label_cam(x.square(), weight, None, labels[:2, 0].repeat(2)[: len(x)]))
    return logits.float().square().sum() + (cams[0].sum(0) * maps[0]).sum() + (seen[0] * maps[0]).sum()


def gradients(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    value = function(x, weight, bias, LABELS)
    return value.detach(), *torch.autograd.grad(value, (x, weight, bias))


def assert_compiled_equals_eager(backend: str, *inputs: Tensor) -> None:
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(objective, fullgraph=True, backend=counter)
    other = (torch.randn_like(inputs[0], requires_grad=True), *parameters())
    for tensors in (inputs, other):
        for got, expected in zip(gradients(compiled, *tensors), gradients(objective, *tensors), strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_equals_eager_and_serves_the_next_batch(backend: str) -> None:
    x = LAYOUTS["channels_last"](torch.randn(3, 5, 4, 6)).requires_grad_()
    assert_compiled_equals_eager(backend, x, *parameters())


def test_half_precision_and_autocast_compile_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_compiled_equals_eager("aot_eager", torch.randn(3, 5, 4, 6).bfloat16().requires_grad_(), *parameters())


def test_half_precision_parameters_get_gradients_of_their_dtype_when_compiled() -> None:
    x, weight, bias = (
        tensor.detach().bfloat16().requires_grad_() for tensor in (torch.randn(3, 5, 4, 6), *parameters())
    )
    compiled = torch.compile(lambda *t: label_cam(*t, LABELS)[:2].sum(), fullgraph=True, backend="aot_eager")
    for gradient in torch.autograd.grad(compiled(x, weight, bias), (x, weight, bias)):
        assert gradient.dtype == torch.bfloat16


def test_one_callable_serves_sizes_of_both_kinds() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(objective, fullgraph=True, backend=counter, dynamic=True)
    for height in (8, 7, 9):
        inputs = (torch.randn(3, 5, height, 6, requires_grad=True), *parameters())
        for got, expected in zip(gradients(compiled, *inputs), gradients(objective, *inputs), strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_the_pooled_features_has_their_layout(backend: str) -> None:
    weight, bias = parameters()
    x = LAYOUTS["channels_last"](torch.randn(3, 5, 4, 6)).requires_grad_()
    compiled = torch.compile(
        lambda x: pooled_head(x, weight, bias, LABELS[:, 0])[0].square().sum(), fullgraph=True, backend=backend
    )
    (gradient,) = torch.autograd.grad(compiled(x), x)
    assert gradient.stride() == x.stride()


def test_inductor_writes_no_tensor_for_the_gradient_between_dropout_and_head() -> None:
    weight, bias = parameters()
    x = LAYOUTS["channels_last"](torch.randn(3, 5, 4, 6)).requires_grad_()

    def step(x: Tensor) -> Tensor:
        dropped = torch.nn.functional.dropout(torch.relu(x))
        return pooled_head(dropped, weight, bias, LABELS[:, 0])[0].square().sum()

    compiled = torch.compile(step, fullgraph=True)
    _, (_, backward) = run_and_get_code(lambda: torch.autograd.grad(compiled(x), x))
    assert backward.count("= empty_strided_cpu((3, 5, 4, 6)") == 1  # the gradient of x


def test_the_gradient_of_the_pooled_features_stays_in_the_graph() -> None:
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    from torch._dynamo.backends.common import aot_autograd

    def step(x: Tensor, weight: Tensor) -> Tensor:
        return pooled_head(torch.relu(x), weight, None, LABELS[:, 0])[0].sum()

    weight, _ = parameters()
    x = torch.randn(3, 5, 4, 6, requires_grad=True)
    torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=record))(x, weight).backward()
    assert sum("pooled_head" in name for name in seen) == 1  # the forward op; the backward is plain and fuses
    assert any("expand" in name for name in seen)
