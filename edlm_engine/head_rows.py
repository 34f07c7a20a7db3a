"""Where the ``head_*`` ops keep logits: some rows at a time, in a workspace that is used again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

HEAD_WORKSPACE_BYTES = 60 << 20
"""Largest workspace of the ``head_*`` ops: the logits that exist at a time, in bytes."""


def head_workspace(vocab_size: int, rows: int, dtype: torch.dtype, device="cpu") -> Tensor:
    """Workspace for the ``head_*`` ops on up to ``rows`` rows: uint8, at most
    :data:`HEAD_WORKSPACE_BYTES` (but one row at least)."""
    row = vocab_size * dtype.itemsize
    fitting = max(1, min(rows, HEAD_WORKSPACE_BYTES // row))
    return torch.empty(fitting * row, dtype=torch.uint8, device=device)


@contextmanager
def one_head_workspace(shared: threading.local | None = None) -> Iterator[None]:
    """Within the body, ``head_*`` calls of a thread that are given no workspace share one.

    It has room for :data:`HEAD_WORKSPACE_BYTES` (or one row, if that is more) from the first call
    on, so a loop of calls allocates it once; pages never written to take no memory on the CPU.
    Threads that inherit the context (``asyncio.to_thread``) have one each. ``shared``, a
    ``threading.local()``, keeps it from one body to the next.
    """
    token = _shared.set(threading.local() if shared is None else shared)
    try:
        yield
    finally:
        _shared.reset(token)


_shared: ContextVar[threading.local | None] = ContextVar("workspace", default=None)


def _workspace(vocab_size: int, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The shared workspace if there is one, else one for this call."""
    shared = None if torch.compiler.is_compiling() else _shared.get()
    if shared is None:
        return head_workspace(vocab_size, rows, dtype, device)
    workspace = getattr(shared, "workspace", None)
    if (
        workspace is None
        or workspace.device != device
        or workspace.numel() < vocab_size * dtype.itemsize
    ):
        workspace = head_workspace(vocab_size, HEAD_WORKSPACE_BYTES, dtype, device)
        shared.workspace = workspace
    return workspace


def head_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    per_row: Tensor,
    what: str,
    workspace: Tensor | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time and their logits, which the next turn overwrites."""
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or len(weight) < 1
    ):
        raise ValueError(
            "hidden and weight must have shapes [R, D] and [V, D] with V >= 1, "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        got = [x.dtype for x in (hidden, weight, bias) if x is not None]
        raise ValueError(f"hidden, weight and bias must share a dtype, got {got}")
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"the head_* ops have no gradient and {name} requires grad: call them under "
                "torch.no_grad(), or token_log_probs on the full logits"
            )
    vocab, rows = weight.shape[0], hidden.shape[0]
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must have shape [{vocab}], got {list(bias.shape)}")
    if per_row.shape != (rows,):
        raise ValueError(f"{what} must have shape [{rows}], got {list(per_row.shape)}")
    if workspace is None:
        workspace = _workspace(vocab, rows, weight.dtype, weight.device)
    if workspace.dtype != torch.uint8 or workspace.numel() < vocab * weight.itemsize:
        raise ValueError(
            f"workspace must be uint8 with at least {vocab * weight.itemsize} elements, "
            f"got {workspace.dtype} {list(workspace.shape)}"
        )
    fitting = workspace.numel() // (vocab * weight.itemsize)
    buffer = workspace[: fitting * vocab * weight.itemsize].view(weight.dtype).view(fitting, vocab)
    # No rows are one part too, so that the other arguments are checked all the same.
    for first in range(0, max(1, rows), fitting):
        part = slice(first, min(rows, first + fitting))
        logits = buffer[: part.stop - first]
        with torch.no_grad():  # not around the yield, where it would reach into the caller
            if bias is None:
                torch.mm(hidden[part], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[part], weight.T, out=logits)
        yield part, logits
