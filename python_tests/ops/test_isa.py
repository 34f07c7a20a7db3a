"""Every instruction set this processor runs gives the same draws, but for rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest

from edlm_engine import _C

SETS = ["portable", "avx2", "avx512"]


def inputs():
    random = np.random.default_rng(0)
    for vocab in (1, 2, 15, 16, 17, 28, 129, 4097, 50258):
        logits = (random.normal(size=(12, vocab)) * 4).astype(np.float32)
        logits[0, vocab // 2] += 60
        logits[1] -= np.arange(vocab, dtype=np.float32) * 0.02
        bfloat16 = (logits.view(np.uint32) >> 16).astype(np.uint16)
        for values in (logits, logits.astype(np.float16), bfloat16):
            yield values, np.arange(12), -1 if vocab == 1 else vocab - 1


LAWS = ({}, {"top_k": 40, "temperature": 1.3}, {"top_p": 0.9}, {"top_p": 0.95, "min_p": 0.01})


def results():
    """Tokens, log_q and statistics of every input under every law, and of redraws by residual_draw;
    each [calls, 12, ...]."""
    drawn = [
        _C.sample_candidates(x, keys, 6, forbidden_id=f, statistics=True, **law)
        for x, keys, f in inputs()
        for law in LAWS
    ]
    redrawn = [
        _C.residual_draw(
            x, np.ascontiguousarray(x[:, ::-1]), keys % x.shape[1], keys, forbidden_p=f
        )
        for x, keys, f in inputs()
    ]
    return [np.stack(part) for made in (drawn, redrawn) for part in zip(*made, strict=True)]


@pytest.mark.parametrize("isa", SETS)
def test_same_draws(isa, tmp_path):
    code = (
        "import numpy as np, test_isa; from edlm_engine import _C;"
        f"np.savez({str(tmp_path / 'r.npz')!r}, *test_isa.results(), "
        "isa=_C.build_info()['cpu_isa'])"
    )
    env = os.environ | {"EDLM_CPU_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    got = np.load(tmp_path / "r.npz")
    # Where the processor lacks the set the choice falls back, and says so.
    if got["isa"] != isa:
        assert SETS.index(str(got["isa"])) > SETS.index("portable")
    tokens, log_q, statistics, token, accepted, log_p = results()
    same = token == got["arr_3"]
    assert same.mean() > 0.99 and (accepted == got["arr_4"]).mean() > 0.99
    assert np.abs(log_p - got["arr_5"])[same].max() < 1e-5
    same = tokens == got["arr_0"]
    assert same.mean() > 0.999
    assert np.abs(log_q - got["arr_1"])[same].max() < 1e-6
    assert np.array_equal(np.isinf(statistics), np.isinf(got["arr_2"]))
    finite = np.isfinite(statistics)
    assert np.abs(statistics[finite] - got["arr_2"][finite]).max() < 1e-5
