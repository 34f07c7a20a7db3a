import numpy as np
import pytest
import torch

from edlm_engine import ops, reference

BATCH, LENGTH, CANDIDATES = 7, 300, 5


def case(scored=2, sequences=4, length=LENGTH, candidates=CANDIDATES, seed=0):
    """Arguments on the CPU: of `sequences` out of BATCH, `scored` with complete candidates."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(sequences, length, generator=generator) < 0.4
    drawn[-1, :] = False
    places, sizes = drawn.flatten().nonzero()[:, 0], drawn.sum(1)
    starts = 11 + torch.cat([torch.zeros(1).long(), sizes.cumsum(0)])
    draws = len(places), candidates
    return {
        "tokens": torch.randint(0, 50, draws, generator=generator),
        "log_q": -torch.rand(draws, generator=generator) * 9,
        "places": places,
        "starts": starts,
        "rows": torch.randperm(BATCH, generator=generator)[:sequences],
        "x0": torch.full((scored, candidates, length), -7),
        "canvas": torch.randint(200, 250, (BATCH, length), generator=generator),
        "failed": torch.zeros(BATCH, dtype=torch.int64),
    }


def on(device, given):
    return {name: x.to(device, copy=True) for name, x in given.items()}


def both(given, device="cpu", **options):
    ours, theirs = on(device, given), on("cpu", given)
    xt, sums = ops.place_candidates(**ours, **options)
    wanted = reference.place_candidates(**theirs, **options)
    assert torch.equal(xt.cpu(), wanted[0])
    assert sums.dtype == torch.float32 and torch.equal(sums.cpu(), wanted[1])
    for name, x in theirs.items():
        assert torch.equal(ours[name].cpu(), x), name
    return xt.cpu(), sums.cpu(), theirs


@pytest.mark.parametrize("first_position", [0, 1, 200])
@pytest.mark.parametrize("length", [1, 7, LENGTH])
@pytest.mark.parametrize(("scored", "sequences"), [(0, 3), (1, 1), (2, 5), (4, 4), (6, 7)])
def test_matches_reference(scored, sequences, length, first_position, device):
    given = case(scored, sequences, length)
    *_, after = both(given, device, first_position=first_position)
    assert (after["x0"] >= 0).all() and not after["failed"].any()


def test_by_hand(device):
    given = {
        "tokens": torch.tensor([[1, 2], [3, 4], [5, 6]]),
        "log_q": torch.tensor([[-1.0, -2.0], [-4.0, -8.0], [-16.0, -32.0]]),
        "places": torch.tensor([1, 2, 4]),
        "starts": torch.tensor([5, 7, 8]),
        "rows": torch.tensor([2, 0]),
        "x0": torch.zeros(1, 2, 3, dtype=torch.int64),
        "canvas": torch.tensor([[8, 0, 7], [6, 6, 6], [9, 0, 0]]),
        "failed": torch.zeros(3, dtype=torch.int64),
    }
    xt, sums, after = both(given, device, first_position=2)
    assert xt.tolist() == [[9, 0, 0]]
    assert sums.tolist() == [[-4.0, -8.0]]
    assert after["x0"].tolist() == [[[9, 1, 3], [9, 2, 4]]]
    assert after["canvas"].tolist() == [[8, 5, 7], [6, 6, 6], [9, 0, 0]]


@pytest.mark.parametrize("row", [0, 60, -1])
def test_rows_that_could_not_be_drawn_from(row, device):
    """Token -1 is placed as 0, and its sequence noted: no model sees it, and none beside it."""
    given = case()
    given["tokens"][row] = -1
    given["log_q"][row] = torch.nan
    ours = on(device, given)
    sums = ops.place_candidates(**ours)[1].cpu()
    theirs = on("cpu", given)
    wanted = reference.place_candidates(**theirs)[1]
    assert torch.equal(sums.nan_to_num(7), wanted.nan_to_num(7))
    for name in ("x0", "canvas", "failed"):
        assert torch.equal(ours[name].cpu(), theirs[name])
    owner = int(given["places"][row] // LENGTH)
    assert theirs["failed"].nonzero().flatten().tolist() == [given["rows"][owner]]
    assert (theirs["x0"] >= 0).all() and (theirs["canvas"] >= 0).all()


def test_a_sequence_is_the_same_in_any_batch_and_order_of_draws(device):
    given = case(3, 3)
    _, whole, _ = both(given, device)
    starts = given["starts"].tolist()
    for i in range(3):
        mine = np.arange(starts[i], starts[i + 1]) - starts[0]
        np.random.default_rng(i).shuffle(mine)
        alone = {
            **{name: given[name][mine] for name in ("tokens", "log_q")},
            "places": given["places"][mine] - i * LENGTH,
            "starts": given["starts"][i : i + 2],
            **{name: given[name][i : i + 1] for name in ("rows", "x0")},
            **{name: given[name] for name in ("canvas", "failed")},
        }
        assert torch.equal(both(alone, device)[1][0], whole[i])


def test_threads():
    given = case(60, 64, 700)
    given["rows"], given["canvas"] = torch.arange(64), torch.zeros(64, 700, dtype=torch.int64)
    given["failed"] = torch.zeros(64, dtype=torch.int64)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            both(given)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokens", lambda x: x.int(), r"tokens must be int64 with shape \[draws, K\], got int32"),
        ("tokens", lambda x: x[:, :0], r"tokens must have K >= 1"),
        ("log_q", lambda x: x.double(), r"log_q must be contiguous float32 with shape \[\d+, 5\]"),
        ("places", lambda x: x[1:], r"places must be contiguous int64 with shape \[\d+\]"),
        ("places", lambda x: x.flip(0), r"places of sequence 0 must be in \[0, 300\), got \d+"),
        ("places", lambda x: x - 300, r"places of sequence 0 must be in \[0, 300\), got -"),
        ("starts", lambda x: x[1:], r"starts must be contiguous int64 with shape \[5\]"),
        ("starts", lambda x: x * 2, r"starts must rise by \d+, the number of places, got \d+"),
        ("starts", lambda x: x.index_fill(0, torch.tensor([2]), 0), "starts must not fall, got 0"),
        ("starts", lambda x: x.index_fill(0, torch.tensor([2]), 9**9), "starts must not fall, got"),
        ("rows", lambda x: x + 7, r"rows must be in \[0, 7\), got \d+"),
        ("rows", lambda x: x - 7, r"rows must be in \[0, 7\), got -\d+"),
        ("rows", lambda x: x[None], r"rows must be int64 with shape \[n\], got int64 \[1, 4\]"),
        ("canvas", lambda x: x.T.contiguous().T, r"canvas must be contiguous int64 with shape \[7"),
        ("x0", lambda x: x[:, 1:], r"x0 must be contiguous int64 with shape \[2, 5, 300\]"),
        ("x0", lambda x: x.repeat(3, 1, 1), "x0 must have at most the 4 sequences of rows"),
        ("canvas", lambda x: x[:, 1:], r"x0 must be contiguous int64 with shape \[2, 5, 299\]"),
        ("failed", lambda x: x[:3], r"failed must be contiguous int64 with shape \[7\]"),
    ],
)
def test_bad_arguments(name, change, message):
    given = case()
    given[name] = change(given[name])
    with pytest.raises(RuntimeError, match=message):
        ops.place_candidates(**given)


def test_opcheck():
    given = list(case().values())
    given.insert(5, 1)
    torch.library.opcheck(torch.ops.edlm.place_candidates.default, tuple(given))
