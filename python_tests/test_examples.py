"""Every example runs, in small, and what it shows holds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

import edlm_engine as edlm
from edlm_engine.sampling.rules import ORDERS

ROOT = Path(edlm.__file__).parents[1]
FOLDER = ROOT / "examples"
pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the package is installed, this is no checkout"),
]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # torch.compile looks it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_engine(monkeypatch):
    """The bundled pair is read once for all of them."""
    read = edlm.Engine.from_pretrained

    def from_pretrained(path=None, *, energy="default"):
        key = path, energy
        if key not in ENGINES:
            ENGINES[key] = read(path, energy=energy)
        return ENGINES[key]

    monkeypatch.setattr(edlm.Engine, "from_pretrained", from_pretrained)


ENGINES = {}


def test_unconditional():
    plain, corrected = example("unconditional").main(2, steps=4, candidates=4, length=16)
    assert plain.energy_evaluations.sum() == 0 < corrected.energy_evaluations.min()
    assert plain.texts != corrected.texts


def test_infilling():
    canvas, out = example("infilling").main(2, candidates=3)
    mask = ENGINES[None, "default"].denoiser.mask_id
    assert (out.sequences != mask).all() and (canvas == mask).sum() == 2 * 9
    assert out.nfe.tolist() == [9, 9]


def test_own_models():
    shares = example("own_models").main(100, candidates=8)
    assert shares["with the energy"] > shares["denoiser alone"] + 0.1


def test_drop_in():
    own, ours, calls, fewer = example("drop_in").main(steps=40, batch_size=3)
    assert own.shape == ours.shape == (3, 8) and own.dtype == ours.dtype
    assert ours.min() >= 0 and ours.max() < 5
    assert calls == 41 and fewer <= 9


def test_hugging_face_energy(tmp_path):
    module = example("hugging_face_energy")
    mean = module.main(batch_size=8, steps=4, length=12)
    assert mean[8] < mean[1] - 0.2
    tokenizer = ENGINES[None, None].tokenizer
    module.random_model(tokenizer.vocab_size, tokenizer.bos_id).save_pretrained(tmp_path)
    assert module.main(str(tmp_path), batch_size=8, steps=4, length=12) == mean


def test_guided():
    found = example("guided").main(4, steps=4, candidates=6, length=20)
    (free, _), (tilted, clean), _, (_, clean_ar) = found.values()
    assert tilted > free and clean == clean_ar == 4


def test_session():
    texts, alone = example("session").main(steps=4, length=12)
    assert [texts[i] for i in range(4)] == alone


def test_orders():
    module = example("orders")
    rows = module.main(2, steps=4, length=16)
    assert set(rows) == set(module.ORDERS) and all(row[0] > 0 for row in rows.values())
    assert {options.get("order", "ancestral") for options in module.ORDERS.values()} == set(ORDERS)


def test_policy_gradient():
    rewards, worst = example("policy_gradient").main(updates=15)
    assert worst < 1e-5 and rewards[-1] > rewards[0] + 0.3


def test_chat():
    known, out = example("chat").main(answer=12, steps=6, block=4)
    assert out.sequences[0, : len(known)].tolist() == known
    step = out.record.step[0, len(known) :].view(3, 4)
    assert step.min(dim=1).values.tolist() == [1, 3, 5] and step.max(dim=1).values[2] == 6
    assert out.nfe.tolist() == [12]


def test_rollouts():
    engine, prompts, result = example("rollouts").main(2, steps=4, length=16)
    policy = example("policy_gradient")
    for prompt, *row in zip(prompts, *result.values(), strict=True):
        known, completion, logprobs, steps = row
        assert known == engine.tokenizer.encode(prompt)
        assert len(completion) == len(logprobs) == len(steps) == 16 - len(known)
        sequence, step = (torch.tensor([x]) for x in (known + completion, [0] * len(known) + steps))
        with torch.inference_mode():
            again = policy.revealed_log_probs(Timeless(engine.denoiser), sequence, step)
        torch.testing.assert_close(again[0, len(known) :].tolist(), logprobs, rtol=0, atol=0.05)
    # A group has several completions of one prompt, and an end of text ends one.
    assert result["completion_ids"][0] != result["completion_ids"][1]
    end = result["completion_ids"][0][3]
    config = edlm.GenerationConfig(steps=4, length=16, num_candidates=1, record=True)
    cut = example("rollouts").rollout(engine, config, end, prompts)
    first = result["completion_ids"][0].index(end) + 1
    for name in ("completion_ids", "logprobs", "steps"):
        assert cut[name][0] == result[name][0][:first]


def test_compiled(tmp_path):
    """Each way gives the engine's tokens, and so does a C++ program that has no Python."""
    package = tmp_path / "step.pt2"
    found, seeds = example("compiled").main(package=str(package))
    program = tmp_path / "aoti"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", FOLDER / "aoti.cpp", "-o", program]
    command += [f"-I{path}" for path in include_paths()]
    for path in library_paths():
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    # The library of ops wants libtorch, so the program must have loaded it.
    subprocess.run([*command, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    # Any batch: one sequence fewer.
    arguments = [
        package,
        Path(edlm.__file__).with_name("_torch.so"),
        6,
        12,
        32,
        *seeds[:2].tolist(),
    ]
    run = subprocess.run([program, *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    lines = [[int(word) for word in line.split()] for line in run.stdout.splitlines()]
    found["AOTInductor in C++"] = torch.tensor(lines)
    assert set(map(len, found.values())) == {2, 3} and len(found) == 5
    for name, tokens in found.items():
        assert torch.equal(tokens, found["engine"][: len(tokens)]), name


def test_cuda_graph(capsys):
    texts = example("cuda_graph").main()
    if torch.cuda.is_available():
        assert len(set(texts)) == 8
    else:
        assert texts is None and "no CUDA device" in capsys.readouterr().out


class Timeless:
    """The bundled denoiser, which has no time conditioning, without its noise level."""

    def __init__(self, denoiser):
        self.denoiser, self.mask_id = denoiser, denoiser.mask_id

    def logits(self, xt):
        weight, bias = self.denoiser.head
        hidden = self.denoiser.hidden(xt, torch.zeros(len(xt)))
        return torch.nn.functional.linear(hidden.float(), weight.float(), bias)


def test_all_are_short_listed_and_tested():
    files = sorted(FOLDER.glob("*.py"))
    readme, here = (ROOT / "README.md").read_text(), Path(__file__).read_text()
    assert set(re.findall(r"\(examples/(\w+)\.py\)", readme)) == {file.stem for file in files}
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) <= 80, file
        assert f'example("{file.stem}")' in here and f"python examples/{file.name}" in text
