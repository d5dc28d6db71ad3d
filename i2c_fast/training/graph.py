"""A whole training step as one CUDA graph: for batches so small that the GPU would wait for its host."""

from typing import Any

import torch
from torch import Tensor

from ..data import TrainBatch
from .step import TrainStep


class GraphedStep(TrainStep):
    """Takes a few steps as they are, then captures one and replays it, on batches of one shape.

    Dropout and other draws of a replay follow the generators' seeds as an eager step's do, learning rates and batches
    are copied into the memory that the graph reads, so each step computes what `TrainStep` would.
    """

    # Steps before the capture: libraries choose their algorithms, kernels compile, streams get their workspaces.
    WARM_UP = 3

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stream = torch.cuda.Stream(self.runtime.device)
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: TrainBatch) -> Tensor:
        """As `TrainStep`."""
        if self._taken < self.WARM_UP:
            self._taken += 1
            return self._on_side_stream(batch)
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        for name in TrainBatch._fields[:4]:
            getattr(self._input, name).copy_(getattr(batch, name), non_blocking=True)
        self._graph.replay()
        return self._output.clone()  # the next replay writes there again

    def _on_side_stream(self, batch: TrainBatch) -> Tensor:
        # A capture runs on another stream than the default one, and autograd's nodes remember theirs.
        current = torch.cuda.current_stream(self.runtime.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = super().__call__(batch)
        current.wait_stream(self._stream)
        return output

    def _capture(self, batch: TrainBatch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(self.runtime.device)
        on_device = batch.to(self.runtime.device)
        self._input = batch._replace(**{name: getattr(on_device, name).clone() for name in TrainBatch._fields[:4]})
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.runtime.device)
        # Loader threads may pin memory meanwhile, which a capture of all threads would not survive.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._output = super().__call__(self._input)
