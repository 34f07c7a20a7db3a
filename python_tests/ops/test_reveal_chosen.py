import pytest
import torch

from edlm_engine import ops, reference

BATCH, LENGTH, CANDIDATES, COLUMNS = 7, 200, 5, 3


def case(sequences=4, length=LENGTH, candidates=CANDIDATES, seed=0):
    """Arguments on the CPU; the last sequence reveals nothing."""
    generator = torch.Generator().manual_seed(seed)
    revealed = torch.rand(sequences, length, generator=generator) < 0.3
    revealed[-1] = False
    starts = torch.cat([torch.zeros(1).long(), revealed.sum(1).cumsum(0)])
    return {
        "energy": torch.randn(sequences, candidates, generator=generator) * 3 + 700,
        "keys": ops.stream_keys(seed, torch.arange(sequences)),
        "x0": torch.randint(0, 50, (sequences, candidates, length), generator=generator),
        "places": revealed.flatten().nonzero()[:, 0],
        "starts": 9 + starts,
        "rows": torch.randperm(BATCH, generator=generator)[:sequences],
        "columns": torch.randint(0, COLUMNS, (sequences,), generator=generator),
        "canvas": torch.randint(200, 250, (BATCH, length), generator=generator),
        "ess": torch.full((BATCH, COLUMNS), -7.0),
        "log_z": torch.full((BATCH, COLUMNS), -7.0),
        "failed": torch.zeros(BATCH, dtype=torch.int64),
    }


def on(device, given):
    return {name: x.to(device, copy=True) for name, x in given.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (4, LENGTH), (7, 33)])
@pytest.mark.parametrize("candidates", [1, 2, 8, 33])
def test_matches_reference(sequences, length, candidates, temperature, device):
    given = case(sequences, length, candidates)
    given["energy"][0, 1:] = torch.inf
    ours, theirs = on(device, given), on("cpu", given)
    choice = ops.reveal_chosen(**ours, temperature=temperature).cpu()
    assert torch.equal(choice, reference.reveal_chosen(**theirs, temperature=temperature))
    assert choice[0] == 0
    for name in ("ess", "log_z"):
        torch.testing.assert_close(ours.pop(name).cpu(), theirs.pop(name), rtol=1e-6, atol=0)
    for name, x in theirs.items():
        assert torch.equal(ours[name].cpu(), x), name


def test_chooses_as_resample_does(device):
    given = on(device, case())
    want = ops.resample(-given["energy"] / 2.5, given["keys"])
    choice = ops.reveal_chosen(**given, temperature=2.5)
    place = given["rows"], given["columns"]
    for ours, theirs in zip(
        (choice, given["ess"][place], given["log_z"][place]), want, strict=True
    ):
        assert torch.equal(ours, theirs)
    written = torch.zeros_like(given["ess"], dtype=torch.bool).index_put(
        place, torch.ones((), dtype=torch.bool, device=device)
    )
    assert (given["ess"][~written] == -7).all() and (given["log_z"][~written] == -7).all()


def test_by_hand(device):
    given = {
        "energy": torch.tensor([[0.0, 900.0], [900.0, 0.0]]),
        "keys": torch.tensor([1, 2]),
        "x0": torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]),
        "places": torch.tensor([0, 2, 4]),
        "starts": torch.tensor([0, 2, 3]),
        "rows": torch.tensor([1, 0]),
        "columns": torch.tensor([0, 1]),
        "canvas": torch.zeros(2, 3, dtype=torch.int64),
        "ess": torch.zeros(2, 2),
        "log_z": torch.zeros(2, 2),
        "failed": torch.zeros(2, dtype=torch.int64),
    }
    given = on(device, given)
    assert ops.reveal_chosen(**given).tolist() == [0, 1]
    assert given["canvas"].tolist() == [[0, 11, 0], [1, 0, 3]]
    assert given["ess"].tolist() == [[0, 1], [1, 0]]


def test_energies_may_have_strides(device):
    given = on(device, case())
    wide = torch.randn(4, 2 * CANDIDATES, device=device)
    one, other = on(device, given), on(device, given)
    one["energy"], other["energy"] = wide[:, ::2], wide[:, ::2].contiguous()
    assert torch.equal(ops.reveal_chosen(**one), ops.reveal_chosen(**other))
    assert torch.equal(one["canvas"], other["canvas"])


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_bad_weights(bad, device):
    """On CUDA, which does not wait, they are noted, and candidate 0 stands in."""
    given = case()
    given["energy"][2, 1] = bad
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"log_weights row 2 holds NaN or \+inf"):
            ops.reveal_chosen(**given)
        given["energy"][2] = torch.inf
        with pytest.raises(RuntimeError, match="log_weights row 2 allows nothing"):
            ops.reveal_chosen(**given)
        return
    given = on(device, given)
    assert (ops.reveal_chosen(**given) == -1).tolist() == [False, False, True, False]
    row, column = int(given["rows"][2]), int(given["columns"][2])
    assert given["failed"].nonzero().flatten().tolist() == [row]
    assert given["ess"][row, column].isnan() and given["log_z"][row, column].isnan()
    mine = given["places"][given["places"] // LENGTH == 2] % LENGTH
    assert torch.equal(given["canvas"][row, mine], given["x0"][2, 0, mine])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "energy",
            lambda x: x.double(),
            r"energy must be float32 with shape \[4, 5\], got float64",
        ),
        ("energy", lambda x: x[:, 1:], r"energy must be float32 with shape \[4, 5\], got"),
        ("keys", lambda x: x[1:], r"keys must be contiguous int64 with shape \[4\]"),
        ("x0", lambda x: x[:, :0], "x0 must have K >= 1"),
        ("x0", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "x0 must be contiguous"),
        ("places", lambda x: x.flip(0), r"places of sequence 0 must be in \[0, 200\), got"),
        ("starts", lambda x: x * 2, "starts must rise by"),
        ("rows", lambda x: x + 7, r"rows must be in \[0, 7\), got"),
        ("columns", lambda x: x + 3, r"columns must be in \[0, 3\), got"),
        ("columns", lambda x: x - 3, r"columns must be in \[0, 3\), got"),
        ("canvas", lambda x: x.int(), r"canvas must be int64 with shape \[B, L\], got int32"),
        ("ess", lambda x: x[0], r"ess must have shape \[batch, columns\]"),
        ("log_z", lambda x: x.double(), r"log_z must be contiguous float32 with shape \[7, 3\]"),
        ("failed", lambda x: x[1:], r"failed must be contiguous int64 with shape \[7\]"),
    ],
)
def test_bad_arguments(name, change, message):
    given = case()
    given[name] = change(given[name])
    with pytest.raises(RuntimeError, match=message):
        ops.reveal_chosen(**given)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-31, 1e31, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(RuntimeError, match=r"temperature must be in \[1e-30, 1e\+30\], got"):
        ops.reveal_chosen(**case(), temperature=temperature)


def test_opcheck():
    energy, *others = case().values()
    torch.library.opcheck(torch.ops.edlm.reveal_chosen.default, (energy, 1.5, *others))
