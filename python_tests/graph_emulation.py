"""CUDA graphs as the CPU can show them: recorded calls that run again on the same memory."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a host must wait for a device to answer.
WAITS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "is_nonzero",
}


class EmulatedCapture:
    """Stands in for `edlm_engine.execution.capture.CudaCapture`.

    A replay runs the recorded operations, and no Python: what was a number at the capture stays it.
    Memory allocated by the function belongs to the pool, where other graphs write too: it holds
    garbage outside of a replay. So does, after a capture, whatever the function wrote to: a capture
    computes nothing.
    """

    def __init__(self):
        self.captures = self.replays = 0

    def turn(self):
        return nullcontext()

    def __call__(self, function):
        function()
        with Recording() as record:
            function()
        self.captures += 1
        for tensor in (*record.pool, *record.written):
            spoil(tensor)

        def replay():
            self.replays += 1
            for operation, args, kwargs, own in record.calls:
                results = tensors(operation(*args, **kwargs))
                for kept, result in zip(own, results, strict=True):
                    if kept is not None:
                        kept.copy_(result)
            for tensor in record.pool:
                spoil(tensor)

        return replay


class Recording(TorchDispatchMode):
    """The operations of its body with their arguments and their results' memory."""

    def __init__(self):
        super().__init__()
        self.calls, self.pool, self.written = [], [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        by_mask = "index" in operation.__name__ and any(x.dtype == torch.bool for x in given)
        if operation.__name__.split(".")[0] in WAITS or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        results = operation(*args, **kwargs)
        memory = {x.untyped_storage().data_ptr() for x in given}
        # Results that are views, or arguments written to, have no memory of their own.
        own = [None if x.untyped_storage().data_ptr() in memory else x for x in tensors(results)]
        self.calls.append((operation, args, kwargs, own))
        self.pool += [x for x in own if x is not None]
        if operation._schema.is_mutable:
            self.written.append(given[0])
        return results


def tensors(tree) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def spoil(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
    elif tensor.dtype == torch.bool:
        tensor.logical_not_()
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max)
