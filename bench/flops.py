"""Matrix work: floating-point operations of the products in a call, counted from their shapes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

aten = torch.ops.aten
CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
# The attention kernels, with the place of `is_causal` among their arguments.
ATTENTION = {
    CPU_ATTENTION: 4,
    aten._scaled_dot_product_flash_attention: 4,
    aten._scaled_dot_product_efficient_attention: 6,
    aten._scaled_dot_product_cudnn_attention: 6,
}


def _attention_flops(causal_at: int) -> Callable[..., int]:
    """torch's formula knows no CPU kernel, and counts what a causal kernel may skip."""

    def count(query, key, value, *rest, **options) -> int:
        flops = sdpa_flop_count(query, key, value)
        causal = len(rest) > causal_at - 3 and rest[causal_at - 3]
        return flops // 2 if causal else flops

    return count


class _ZeroProducts(TorchDispatchMode):
    """Products on the CPU give zeros at once: no count depends on a value, only on the plan."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet is CPU_ATTENTION:
            return torch.zeros_like(args[0]), args[0].new_zeros(args[0].shape[:-1])
        if packet not in (aten.mm, aten.addmm) or args[0].is_cuda:
            return func(*args, **kwargs)
        a, b = args[-2:]
        out = kwargs.get("out")
        return a.new_zeros(len(a), b.shape[1]) if out is None else out.zero_()


@contextmanager
def counting_matrix_flops() -> Iterator[Callable[[], int]]:
    """Within the body results are of no use; what it yields reads the operations so far."""
    formulas = {kernel: _attention_flops(place) for kernel, place in ATTENTION.items()}
    with _ZeroProducts(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter.get_total_flops


def matrix_flops(engine, function: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products and attention in ``function()``."""
    # What a CUDA graph holds cannot be seen.
    with mock.patch.object(engine, "cuda_graphs", False), counting_matrix_flops() as flops:
        function()
        return flops()
