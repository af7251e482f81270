"""Processes that train one net together: each computes its lanes of every batch, and sums are taken over all of them.

Nothing here is global to a process: a group is an object, so that a worker may train one net after the other, or take
part in two trainings. What is summed does not depend on how many ranks there are but for the order of additions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import RankError

BUCKET_BYTES = 2**25
"""Gradients are summed in pieces of about this size: fewer round trips than parameter by parameter."""


@dataclass(eq=False)
class Ranks:
    """One process's place among those that train together.

    Attributes
    ----------
    rank, size : int
    group : torch.distributed process group, or None where the process is alone
    device : str
        Where the group takes its tensors.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this one writes, and talks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.group is not None:
            self.group.allreduce([value]).wait()
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter], scale: Tensor | float = 1.0) -> None:
        """Sum the gradients over all ranks and multiply them, in place; the same parameters on every rank."""
        for some in _buckets([p for p in parameters if p.requires_grad]):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
            flat = torch.cat([grad.float().flatten() for grad in grads])
            self.sum(flat).mul_(scale)
            for parameter, grad, part in zip(some, grads, flat.split([g.numel() for g in grads]), strict=True):
                parameter.grad = grad.copy_(part.view(grad.shape))

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape, in the order of the ranks."""
        if self.group is None:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)]
        self.group.allgather([found], [values]).wait()
        return found

    def gather_plain(self, value: Any) -> list[Any]:
        """Plain JSON values of all ranks, in the order of the ranks."""
        if self.group is None:
            return [value]
        text = json.dumps(value).encode()
        sizes = [int(size) for size in self.gather(torch.tensor([len(text)], device=self.device))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        parts = self.gather(padded.to(self.device))
        return [json.loads(bytes(part[:size].tolist())) for part, size in zip(parts, sizes, strict=True)]

    def share_layers(self, net: nn.Module) -> None:
        """Let batch norms and dropout of a net see the whole batch instead of this rank's part of it."""
        if self.group is None:
            return
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = SharedBatchNorm2d
                module.ranks = self  # type: ignore[assignment]
            elif isinstance(module, nn.Dropout) and module.p > 0:
                module.__class__ = SharedDropout
                module.ranks = self  # type: ignore[assignment]

    def leave(self) -> None:
        """Close what connects the ranks: those that still wait for this one get an error at once."""
        group, self.group = self.group, None
        if group is not None:
            # It is the end of the object that closes the connections.
            group.shutdown()


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() * 4 > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= parameter.numel() * 4
    return buckets


@dataclass(frozen=True)
class Meeting:
    """Where ranks meet; plain values that travel to a worker.

    Parameters
    ----------
    host, port
        Where rank 0 listens; it is the one that opens the port.
    size : int
        How many there are.
    timeout_s : float
        How long to wait for the others, at the start and in every sum.
    """

    host: str
    port: int
    size: int
    timeout_s: float = 300.0


def join(meeting: Meeting, rank: int, own_host: str, device: str) -> Ranks:
    """Meet the other ranks; returns when all are there.

    Parameters
    ----------
    meeting : Meeting
    rank : int
    own_host : str
        The address of this process's machine that the others reach it at.
    device : str
        ``"cuda"`` sums on the GPUs (NCCL), ``"cpu"`` through gloo.

    Raises
    ------
    RankError
        If they do not all come in time.
    """
    import torch.distributed as dist

    limit, size = dt.timedelta(seconds=meeting.timeout_s), meeting.size
    if size == 1:
        return Ranks()
    try:
        store = dist.TCPStore(meeting.host, meeting.port, size, rank == 0, limit, wait_for_workers=True)
        if device == "cuda":
            nccl = dist.ProcessGroupNCCL.Options()
            nccl._timeout = limit
            return Ranks(rank, size, dist.ProcessGroupNCCL(store, rank, size, nccl), device)
        gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        # By address: the name of a Debian machine is 127.0.1.1 to itself, and nowhere else.
        gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=own_host)]
        gloo._timeout = limit
        return Ranks(rank, size, dist.ProcessGroupGloo(store, rank, size, gloo))
    except RuntimeError as error:
        raise RankError(
            f"rank {rank} of {size} did not meet the others at {meeting.host}:{meeting.port} within "
            f"{meeting.timeout_s:.0f} s: {error}"
        ) from None


class SharedDropout(nn.Dropout):
    """Dropout whose mask is that of the whole batch: all ranks draw it from equal generators, and take their rows."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = torch.ones((len(x) * self.ranks.size, *x.shape[1:]), dtype=x.dtype, device=x.device)
        mask = nn.functional.dropout(whole, self.p, True)
        return x * mask[len(x) * self.ranks.rank :][: len(x)]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the samples of all ranks; torch's own SyncBatchNorm runs on GPUs alone."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            mean, var, total = _moments_of_all(x, count, self.ranks)
            self._follow(mean, var, total)
        found: Tensor = _Normalised.apply(
            x, self.weight, self.bias, mean, var, torch.tensor([count, total]), self.eps, self.ranks
        )
        return found

    def _follow(self, mean: Tensor, var: Tensor, total: int) -> None:
        """The running statistics, as in `torch.nn.BatchNorm2d`."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (total / max(1, total - 1)), share)


_EPS = 1e-5


def _moments_of_all(x: Tensor, count: int, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """Mean and variance by channel over all ranks, and the number of values (Chan et al. 1979, pairwise update)."""
    # The kernel of batch norm measures several times as fast as a reduction over three dims of a channels-last tensor.
    ones = torch.ones(x.shape[1], device=x.device)
    _, mean, inverse = torch.native_batch_norm(x, ones, torch.zeros_like(ones), None, None, True, 0.0, _EPS)
    own = torch.cat([mean, (inverse**-2 - _EPS).clamp_min(0), mean.new_tensor([float(count)])])
    parts = torch.stack(ranks.gather(own)).double()
    counts = parts[:, -1:]
    means, variances = parts[:, : x.shape[1]], parts[:, x.shape[1] : -1]
    total = counts.sum()
    mean_of_all = (means * counts).sum(dim=0) / total
    spread = (counts * (variances + (means - mean_of_all) ** 2)).sum(dim=0) / total
    return mean_of_all.float(), spread.float(), int(total)


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, whose gradient knows that all ranks made mean and var."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        counts: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        ctx.counts, ctx.eps, ctx.ranks = counts.tolist(), eps, ranks
        return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        count, total = ctx.counts
        # The kernel's gradient takes the sums over this rank for those over all; what lacks is affine in x.
        own, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        sums = torch.stack([by_bias, by_weight]).float()
        lacks = sums / count - ctx.ranks.sum(sums.clone()) / total
        slope = weight * inverse * inverse * lacks[1]
        offset = weight * inverse * lacks[0] - slope * mean
        shape = (1, -1, 1, 1)
        grad = torch.addcmul(own + offset.view(shape).to(x.dtype), x, slope.view(shape).to(x.dtype))
        return grad, by_weight, by_bias, None, None, None, None, None
