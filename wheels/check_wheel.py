"""Checks an installed edlm_engine, away from any checkout: run it by the Python that has it.

    python check_wheel.py

Arrays without torch, ops with it, text of the bundled pair, and the command line. Prints what was
seen as one line of JSON.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np


def arrays_without_torch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, keys, and what `edlm_engine.arrays` draws for them."""
    from edlm_engine import arrays

    assert "torch" not in sys.modules, "edlm_engine.arrays has imported torch"
    logits = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    keys = arrays.stream_keys(0, np.arange(64))
    tokens, log_q = arrays.sample_candidates(logits, keys, 4)
    law = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert np.abs(np.take_along_axis(law, tokens, 1) - log_q).max() < 1e-5
    return logits, keys, tokens, log_q


def ops_agree(logits, keys, tokens, log_q) -> None:
    """torch's ring gives the same tokens, eagerly and by its shape functions in a graph."""
    import torch

    from edlm_engine import ops

    drawn = ops.sample_candidates(torch.from_numpy(logits), torch.from_numpy(keys), 4)
    assert (drawn[0].numpy() == tokens).all() and (drawn[1].numpy() == log_q).all()
    gradient = torch.from_numpy(logits).requires_grad_()
    ops.token_log_probs(gradient, torch.from_numpy(tokens[:, 0].copy())).sum().backward()
    assert abs(float(gradient.grad.sum())) < 1e-3
    call = (torch.ops.edlm.stream_keys.default, (torch.arange(3), torch.arange(6).reshape(3, 2)))
    torch.library.opcheck(*call, test_utils=("test_schema", "test_faketensor"))


def text() -> list[str]:
    import edlm_engine as edlm

    config = edlm.GenerationConfig(steps=4, num_candidates=2, length=24)
    return edlm.Engine.from_pretrained().generate(2, config=config, seed=0).texts


def command_line() -> str:
    """What `edlm generate` prints, by the script beside this Python where there is one."""
    script = Path(sys.executable).with_name("edlm")
    command = [script] if script.exists() else [sys.executable, "-m", "edlm_engine.cli"]
    command += ["generate", "--steps", "4", "--candidates", "2", "--length", "24", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[0])["text"]


def main() -> None:
    ops_agree(*arrays_without_torch())

    import torch

    import edlm_engine
    from edlm_engine import _C

    package = Path(edlm_engine.__file__).parent
    size = sum(file.stat().st_size for file in package.rglob("*") if file.suffix != ".pyc")
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "edlm_engine": edlm_engine.__version__,
        "cuda kernels": _C.build_info()["cuda"],
        "from": str(package),
        "installed MiB": round(size / 2**20, 1),
        "texts": text(),
        "edlm generate": command_line(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
