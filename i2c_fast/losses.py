"""InterImageLoss: from features and class maps to the two consistency terms, and the bank of class centers."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .kernels import IGNORED_LABEL, Slots, inter_image_loss, sample_pixels, update_centers
from .kernels._common import Distance, check_device, check_distance, check_same, check_tensor
from .kernels.sample_pixels import SeedChoice
from .ranks import RankExchange

CenterUpdate = Literal["momentum", "backprop"]


class InterImageTerms(NamedTuple):
    """What `InterImageLoss` returns; total loss = cross-entropy + λ1·sc + λ2·gc (Eq. 6)."""

    sc: Tensor  # scalar, mean of Eq. 1 over pairs; 0 without a pair
    gc: Tensor  # scalar, Eq. 5; 0 without a class
    counts: Tensor  # int32 [N] pixels above the threshold (Fig. 4a)


class InterImageLoss(nn.Module):
    """Stochastic and global consistency of I²C (ECCV 2020, sections 3.1–3.3), with the class centers it needs.

    In training mode each forward draws seed pixels, returns SC and GC against the centers as they stand, and remembers
    the class means; `commit` then moves the centers (Eq. 3, 4) and advances the random step. By default that happens at
    the next forward or in `state_dict()`, so a plain loop needs no extra call. In evaluation mode nothing changes. A
    step captured as a CUDA graph calls `commit` itself, inside the graph: an update pending from outside of it would be
    replayed for ever.

    A class with several pairs in a batch moves its center once, to the mean over all of them (Eq. 2); in the authors'
    release the last pair alone moves it.

    Args:
        num_classes: Y. feature_dim: D.
        k: seed pixels an image. threshold: δ. alpha: decay of the centers' rate (Eq. 4).
        distance: ``squared_l2`` (the paper) or ``l2`` (the released choice; λ does not transfer between them).
        seed_choice: ``random`` (the paper) or ``first`` (the released choice).
        center_update: ``momentum`` (Eq. 3), or ``backprop``: the centers are a parameter (ablation of section 4.3).
        seed: random seed of the centers' initial values and of all draws.
        auto_commit: False leaves the call of `commit` after each optimizer step to the training loop.
        process_group: ranks that divide each batch, equally many images each, such as ``torch.distributed.group.
            WORLD``. Terms, bank and gradients are then those of the whole batch: averaged over ranks, as
            DistributedDataParallel does, the gradients are those of one rank with all images (see `ranks`). An image
            pairs inside its rank alone. None: the rank's own images are the batch.
        ignore_index: label of images that take no part.
        micro_batches: forwards that make up one optimizer step. SC and GC are those of each forward's images, and one
            update moves the centers of all; no class may be in two of them.

    State: ``centers`` fp32 [Y, D], ``steps`` int64 [Y] and ``draws`` int64 [2] (random seed, step). Keep the module
    outside DistributedDataParallel, whose buffer broadcast would overwrite every rank's centers.

    Raises:
        ValueError: an argument out of range.
    """

    centers: Tensor
    steps: Tensor
    draws: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        k: int = 3,
        threshold: float = 0.7,
        alpha: float = 0.002,
        distance: Distance = "squared_l2",
        seed_choice: SeedChoice = "random",
        center_update: CenterUpdate = "momentum",
        seed: int = 0,
        auto_commit: bool = True,
        process_group: dist.ProcessGroup | None = None,
        ignore_index: int = IGNORED_LABEL,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        check_distance(distance)
        if min(num_classes, feature_dim, k, micro_batches) < 1 or not (0 <= threshold < 1 and 0 <= alpha < math.inf):
            raise ValueError(
                "InterImageLoss needs num_classes, feature_dim, k, micro_batches ≥ 1, 0 ≤ threshold < 1 and "
                f"0 ≤ alpha < ∞, got num_classes={num_classes}, feature_dim={feature_dim}, k={k}, "
                f"micro_batches={micro_batches}, threshold={threshold}, alpha={alpha}"
            )
        if seed_choice not in get_args(SeedChoice) or center_update not in get_args(CenterUpdate):
            raise ValueError(
                f"seed_choice must be one of {', '.join(get_args(SeedChoice))} and center_update one of "
                f"{', '.join(get_args(CenterUpdate))}, got {seed_choice!r} and {center_update!r}"
            )
        self.k, self.threshold, self.alpha = k, threshold, alpha
        self.distance, self.seed_choice, self.center_update = distance, seed_choice, center_update
        self.auto_commit, self.process_group, self.ignore_index = auto_commit, process_group, ignore_index
        self.micro_batches = micro_batches
        self._exchange = None if process_group is None else RankExchange(process_group, num_classes)
        centers = torch.randn(num_classes, feature_dim, generator=torch.Generator().manual_seed(seed))
        if center_update == "backprop":
            self.centers = nn.Parameter(centers)
        else:
            self.register_buffer("centers", centers)
        self.register_buffer("steps", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("draws", torch.tensor([seed, 0]))
        self._pending: list[tuple[Tensor, Tensor]] = []  # labels [N] and means [N, D] that await commit

    def forward(
        self,
        features: Tensor,
        maps: Tensor,
        labels: Tensor,
        *,
        slots: Slots | None = None,
        image_ids: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> InterImageTerms:
        """SC and GC of one batch.

        Args:
            features: [N, D, H, W] the backbone's output F; tokens [N, T, D] are the view
                ``tokens.transpose(1, 2).unsqueeze(-1)``.
            maps: [N, H, W] the label's class maps, raw or normalized, H·W = T for tokens; taken as constants.
            labels: [N] integer; one outside 0…Y−1 makes GC NaN, unless it is `ignore_index`.
            slots: from `kernels.tap`, see there.
            image_ids: [N] index in the global batch, for draws that do not depend on how it is divided; by default
                ranks hold it one after the other.
            groups: [N] images pair only inside a group; a class-paired batch gives its slot numbers.

        Returns:
            `InterImageTerms`, differentiable in `features` only (and in the centers with ``backprop``).

        Raises:
            ValueError: shapes, dtypes or devices that do not fit.
            RuntimeError: one training forward more than `micro_batches` before `commit`, with ``auto_commit=False``.
        """
        check_tensor("features", features, 4)
        check_tensor("maps", maps, 3)
        check_same("len(maps)", len(maps), "len(features)", len(features))
        check_same("features.shape[1]", features.shape[1], "feature_dim", self.centers.shape[1])
        pixels, wanted = [*maps.shape[1:]], [*features.shape[2:]]
        tokens = wanted == [math.prod(pixels), 1]
        if pixels != wanted and not tokens:
            raise ValueError(f"maps are {pixels} [H, W] but features are {wanted}; give the maps of these features")
        check_device(features=features, maps=maps, labels=labels, InterImageLoss=self.centers)
        if self.training and len(self._pending) == self.micro_batches:
            if not self.auto_commit:
                raise RuntimeError("auto_commit=False: call commit() after the optimizer step, before the next forward")
            self.commit()
        if self.process_group is not None and image_ids is None:
            first = dist.get_rank(self.process_group) * len(labels)
            image_ids = torch.arange(first, first + len(labels), device=labels.device)
        indices, counts = sample_pixels(maps, self.k, self.threshold, self.draws, image_ids, self.seed_choice)
        out = inter_image_loss(
            features, indices, labels, self.centers, slots=slots, groups=groups, distance=self.distance,
            ignore_index=self.ignore_index, exchange=self._exchange,
        )  # fmt: skip
        if self.training:
            self._pending.append((out.class_means.labels, out.class_means.means))
        return InterImageTerms(out.sc, out.gc, counts)

    @torch.no_grad()
    def commit(self, found_inf: Tensor | None = None) -> None:
        """Apply the pending update of centers and counters and advance the random step; nothing pending, nothing done.

        Args:
            found_inf: scalar tensor; non-zero (a step the optimizer skipped) leaves centers and counters as they were,
                without a look at it from the host. The random step advances all the same.
        """
        if not self._pending:
            return
        labels, means = self._pending[0]
        if len(self._pending) > 1:
            labels, means = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        if self.center_update == "backprop":
            self.draws[1] += 1
        else:
            update_centers(self.centers, self.steps, labels, means, self.alpha, skip=found_inf, draws=self.draws)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As `nn.Module.state_dict`; a pending update is committed first unless the loop commits itself."""
        if self.auto_commit:
            self.commit()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._pending.clear()  # it belongs to the state that is being replaced
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return (
            f"num_classes={len(self.steps)}, feature_dim={self.centers.shape[1]}, k={self.k}, "
            f"threshold={self.threshold}, alpha={self.alpha}, distance={self.distance}, "
            f"seed_choice={self.seed_choice}, center_update={self.center_update}"
        )
