"""The random numbers of the specification: addressed, not drawn.

All of them come from Philox4x32-10 (Salmon et al., SC'11) as a pure function of a 64-bit key and a
counter. 64-bit values travel in int64 tensors, read as uint64.
"""

import torch
from torch import Tensor

STREAM_TAG = 0x53545245
SAMPLE_TAG = 0x53414D50

Word = Tensor | int

_LOW_32 = 0xFFFFFFFF


def philox(
    counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random 32-bit words from a counter of four words and a key of two.

    Words are int64 tensors (or ints) in [0, 2^32) and broadcast together.
    """
    c0, c1, c2, c3, k0, k1 = (torch.as_tensor(word, dtype=torch.int64) for word in counter + key)
    for _ in range(10):
        # An int64 product wraps modulo 2^64, which keeps all 64 bits of the unsigned product.
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = _high(second) ^ c1 ^ k0, _low(second), _high(first) ^ c3 ^ k1, _low(first)
        k0, k1 = _low(k0 + 0x9E3779B9), _low(k1 + 0xBB67AE85)
    return c0, c1, c2, c3


def random_bits(keys: Tensor, counter: Tensor | int, index: int, tag: int) -> Tensor:
    """64 random bits (int64) of a key at a 64-bit counter; index and tag separate the uses."""
    counter = torch.as_tensor(counter, dtype=torch.int64, device=keys.device)
    w0, w1, _, _ = philox((_low(counter), _high(counter), index, tag), (_low(keys), _high(keys)))
    return w0 | w1 << 32


def uniform(bits: Tensor) -> Tensor:
    """Float64 in (0, 1), centred in one of 2^52 bins: never 0 and never 1."""
    return ((bits >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52


def stream_keys(seeds: Tensor | int, *coordinates: Tensor | int) -> Tensor:
    """Key of the random stream at an address: the coordinates folded into the seed one by one.

    Seeds and coordinates are ints or int64 tensors and broadcast together; the result is int64 of
    the broadcast shape. Each coordinate's place counts: (1, 2) and (2, 1) are different addresses.
    """
    tensors = [x for x in (seeds, *coordinates) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else None
    words = (_as_int64(x, device) for x in (seeds, *coordinates))
    keys, *folded = torch.broadcast_tensors(*words)
    for index, coordinate in enumerate(folded):
        keys = random_bits(keys, coordinate, index, STREAM_TAG)
    return keys.contiguous()


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """First index whose inclusive prefix sum of weights [R, V] exceeds u * total, for u [R, K].

    Rounding overshoot ends at the last index with positive weight.
    """
    prefix = weights.cumsum(dim=1)
    index = torch.searchsorted(prefix, u * prefix[:, -1:], right=True)
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(dim=1, keepdim=True)
    return torch.minimum(index, last)


def _low(word: Tensor) -> Tensor:
    return word & _LOW_32


def _high(word: Tensor) -> Tensor:
    return word >> 32 & _LOW_32


def _as_int64(value: Tensor | int, device: torch.device | None) -> Tensor:
    if isinstance(value, Tensor):
        check(value.dtype == torch.int64, "stream_keys wants int64 tensors", describe(value))
        return value
    check(-(2**63) <= value < 2**64, "a seed or coordinate must fit 64 bits", value)
    # The same bits as int64: 2^64 - 1 and -1 are one seed.
    return torch.tensor((value + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=device)


def check(good: bool, wanted: str, got: object) -> None:
    """Raise RuntimeError naming what was wanted and what came, unless `good`."""
    if not good:
        raise RuntimeError(f"{wanted}, got {got}")


def describe(tensor: Tensor) -> str:
    """Dtype and shape, as messages name them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_int64(name: str, tensor: Tensor, rows: int) -> None:
    good = tensor.dtype == torch.int64 and tuple(tensor.shape) == (rows,)
    check(good, f"{name} must be int64 with shape [{rows}]", describe(tensor))
