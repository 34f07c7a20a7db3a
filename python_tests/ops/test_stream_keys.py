import numpy as np
import pytest
import torch
from scipy import stats

from edlm_engine import ops, reference


def test_philox_known_answers():
    """Random123's published vectors, through the reference that the other tests lean on."""
    zeros = reference.philox((0, 0, 0, 0), (0, 0))
    assert [int(w) for w in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = reference.philox((2**32 - 1,) * 4, (2**32 - 1,) * 2)
    assert [int(w) for w in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize(
    ("seeds", "coordinates"),
    [
        (7, (3,)),
        (-1, (2**40, torch.arange(5))),
        (torch.tensor([1, -(2**63), 2**63 - 1]), (torch.arange(4)[:, None], 9, -5)),
        (torch.zeros(2, 0, dtype=torch.int64), (1,)),
    ],
)
def test_matches_reference(seeds, coordinates):
    got = ops.stream_keys(seeds, *coordinates)
    want = reference.stream_keys(seeds, *coordinates)
    assert got.dtype == torch.int64 and torch.equal(got, want)


def test_device(device):
    coordinates = (torch.arange(50), torch.arange(3)[:, None])
    want = ops.stream_keys(11, *coordinates)
    got = ops.stream_keys(11, *(c.to(device) for c in coordinates))
    assert got.device.type == device and torch.equal(got.cpu(), want)


def test_no_coordinates_is_the_seed_itself():
    seeds = torch.tensor([5, 6])
    keys = ops.stream_keys(seeds)
    assert torch.equal(keys, seeds) and keys.data_ptr() != seeds.data_ptr()


def test_every_address_is_its_own():
    keys = ops.stream_keys(
        torch.arange(20)[:, None, None], torch.arange(30)[:, None], torch.arange(40)
    )
    assert len(keys.unique()) == keys.numel()
    assert int(ops.stream_keys(1, 2, 3)) != int(ops.stream_keys(1, 3, 2))
    assert int(ops.stream_keys(1, 2, 0)) != int(ops.stream_keys(1, 2))


def test_keys_are_uniform_bits():
    words = ops.stream_keys(0, torch.arange(100_000)).numpy().view(np.uint8)
    assert stats.chisquare(np.bincount(words, minlength=256)).pvalue > 1e-4


def test_words_beyond_int64_are_the_same_bits():
    assert int(ops.stream_keys(2**64 - 1, 0)) == int(ops.stream_keys(-1, 0))
    with pytest.raises(ValueError, match="must fit 64 bits"):
        ops.stream_keys(2**64, 0)


def test_wrong_dtype():
    with pytest.raises(ValueError, match=r"seeds must be int64 or an int, got torch.float32"):
        ops.stream_keys(torch.zeros(2), 1)
    with pytest.raises(ValueError, match=r"coordinate 1 must be int64 or an int, got torch.int32"):
        ops.stream_keys(0, 1, torch.zeros(2, dtype=torch.int32))


def test_opcheck_and_compile():
    seeds, coordinates = torch.arange(4), torch.arange(8).view(4, 2)
    torch.library.opcheck(torch.ops.edlm.stream_keys.default, (seeds, coordinates))
    compiled = torch.compile(
        lambda s, c: ops.stream_keys(s, c, 3) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(seeds, seeds), ops.stream_keys(seeds, seeds, 3) + 1)
