"""The plugin on SGLang's own base class and both of its loops, with stand-ins for what needs a GPU.

`make sglang` fetches the wheel and unpacks these files into build/sglang; EDLM_SGLANG names another
folder.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch

import edlm_engine
from edlm_engine.hosts import sglang as plugin

ROOT = Path(edlm_engine.__file__).parents[1]
FOLDER = Path(os.environ.get("EDLM_SGLANG", ROOT / "build" / "sglang")).resolve()
there = pytest.mark.skipif(
    not (FOLDER / "sglang" / "srt" / "dllm" / "algorithm" / "base.py").is_file(),
    reason=f"SGLang's files are not in {FOLDER}: `make sglang` fetches them",
)
VOCAB, BLOCK = 12, 4
MASK = VOCAB - 1
STAND_INS = [
    *("arg_groups.overrides", "configs.model_config", "layers.logits_processor"),
    *("model_executor.forward_batch_info", "model_executor.model_runner", "server_args", "utils"),
]
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def sglang(monkeypatch):
    """SGLang's package `dllm` as it is in the wheel; what it imports besides is empty classes."""

    def anything(wanted):
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return type(wanted, (), {})

    def module(name, path=None):
        made = types.ModuleType(name)
        made.__getattr__ = anything
        if path is not None:
            made.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, made)
        return made

    for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("sglang", "sglang.srt", "sglang.srt.dllm"):
        module(name, FOLDER / name.replace(".", "/"))
    for name in STAND_INS:
        module(f"sglang.srt.{name}")
    sys.modules["sglang.srt.utils"].is_npu = lambda: False
    yield importlib.import_module("sglang.srt.dllm.algorithm")
    for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name, raising=False)


class Runner:
    """A model runner: logits that depend on the row's whole block and on its positions."""

    def __init__(self):
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
        self.calls = 0

    def logits(self, xt, position):
        return (self.table[xt].sum(dim=1)[:, None] + self.table[position % VOCAB]) / 2

    def forward(self, batch, pp_proxy_tensors=None):
        self.calls += 1
        shape = (batch.batch_size, BLOCK)
        logits = self.logits(batch.input_ids.view(shape), batch.positions.view(shape))
        output = types.SimpleNamespace(full_logits=logits.flatten(0, 1))
        return types.SimpleNamespace(logits_output=output, can_run_graph=False)


def batch_of(blocks, rids, first, prompt_mask=None):
    position = torch.tensor(first)[:, None] + torch.arange(BLOCK)
    return types.SimpleNamespace(
        batch_size=len(blocks),
        input_ids=torch.tensor(blocks).flatten(),
        positions=position.flatten(),
        rids=rids,
        dllm_prompt_mask=prompt_mask,
        sampling_info=None,
    )


def algorithm(sglang, fdfo=False, **settings):
    plugin.register()
    config = types.SimpleNamespace(
        algorithm="EDLM",
        algorithm_config=settings,
        block_size=BLOCK,
        mask_id=MASK,
        first_done_first_out_mode=fdfo,
    )
    return sglang.get_algorithm(config)


def request(rid, **parameters):
    return types.SimpleNamespace(rid=rid, sampling_params=types.SimpleNamespace(**parameters))


def in_sync(sglang, blocks, rids, first, **settings):
    batch, runner = batch_of(blocks, rids, first), Runner()
    made = algorithm(sglang, **settings)
    made.run(runner, batch)
    return batch.input_ids.view(-1, BLOCK).tolist(), runner.calls


FREE = [MASK] * BLOCK


@there
def test_both_loops_give_a_request_its_tokens_in_any_batch(sglang, tmp_path):
    blocks, rids, first = [FREE, [3, MASK, 5, MASK], FREE], ["a", "b", "c"], [0, 8, 4]
    together, calls = in_sync(sglang, blocks, rids, first, steps=3)
    assert all(MASK not in row for row in together) and together[1][::2] == [3, 5]
    # No step is taken that reveals nothing, and one call more writes the block's KV cache.
    assert 3 <= calls <= 5
    for block, rid, start, tokens in zip(blocks, rids, first, together, strict=True):
        assert in_sync(sglang, [block], [rid], [start], steps=3)[0] == [tokens]
    made = algorithm(sglang, fdfo=True, steps=3, log_probs=str(tmp_path / "log_q"))
    batch, states, rounds = batch_of(blocks, rids, first), None, 0
    done = [False] * 3
    while not all(done):
        _, tokens, accepted, states, _ = made.run(Runner(), batch, states)
        done = [was or got == BLOCK for was, got in zip(done, accepted, strict=True)]
        rounds += 1
    assert tokens == together and rounds == calls
    lines = [json.loads(line) for line in (tmp_path / "log_q").read_text().splitlines()]
    assert sorted(line["rid"] for line in lines) == rids
    assert {len(line["log_q"]) for line in lines} == {4, 2}


@there
def test_log_probabilities_are_those_of_the_draws(sglang, tmp_path):
    """One step fills the block, so its draws come from the logits of the masked block."""
    path = tmp_path / "log_q"
    (tokens,), _ = in_sync(
        sglang, [FREE], ["a"], [4], steps=1, temperature=0.8, log_probs=str(path)
    )
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    logits = Runner().logits(torch.tensor([FREE]), torch.arange(4, 8)[None])[0] / 0.8
    logits[:, MASK] = -torch.inf
    law = logits.log_softmax(dim=1)[range(BLOCK), tokens]
    found = torch.tensor([line["log_q"][str(place)] for place in range(4, 8)])
    assert line["position"] == 4
    torch.testing.assert_close(found, law, rtol=0, atol=1e-5)


@there
def test_draws_follow_the_law(sglang):
    """4096 requests of one step: frequencies of the first position, chi-square below its 0.999."""
    rids = [f"r{i}" for i in range(4096)]
    tokens, _ = in_sync(sglang, [FREE] * 4096, rids, [0] * 4096, steps=1)
    counts = torch.bincount(torch.tensor(tokens)[:, 0], minlength=VOCAB)[:-1].double()
    logits = Runner().logits(torch.tensor([FREE]), torch.arange(4)[None])[0, 0, :-1]
    wanted = logits.double().softmax(dim=0) * 4096
    assert ((counts - wanted) ** 2 / wanted).sum() < 29.59


@there
def test_seeds_come_with_requests(sglang):
    made = algorithm(sglang)
    for rid, parameters in (("x", {"sampling_seed": 5}), ("y", {"custom_params": {"seed": 5}})):
        assert type(made).validate_request(request(rid, **parameters)) is None
    same = in_sync(sglang, [FREE, FREE], ["x", "y"], [0, 0])[0]
    assert same[0] == same[1]
    other = in_sync(sglang, [FREE] * 6, list("pqrstu"), [0] * 6)[0]
    assert len(set(map(tuple, other))) > 3
    refused = type(made).validate_request(request("z", temperature=0.5))
    assert refused == "EDLM takes temperature from --dllm-algorithm-config, not from a request"
    assert type(made).validate_request(request("z", temperature=1.0, top_k=1 << 30)) is None


@there
def test_a_mask_in_the_prompt_stays(sglang):
    known = torch.tensor([[True, False, False, False]])
    batch = batch_of([[MASK] * BLOCK], ["a"], [0], known)
    algorithm(sglang).run(Runner(), batch)
    tokens = batch.input_ids.tolist()
    assert tokens[0] == MASK and MASK not in tokens[1:]


@there
def test_wrong_settings_are_named(sglang):
    with pytest.raises(ValueError, match=r"EDLM takes steps, log_probs, temperature.*threshold"):
        algorithm(sglang, threshold=0.9)


class Older:
    """The base class of a version that passes `logits_output`."""

    def init_step_state(self, forward_batch): ...
    def max_steps(self, block_size): ...
    def step(self, forward_batch, logits_output, states): ...


def test_another_version_is_refused():
    wanted = "Older.step takes self, forward_batch, full_logits, states; in SGLang .* it takes self"
    with pytest.raises(RuntimeError, match=wanted):
        plugin.check(Older)


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'edlm = "edlm_engine.hosts.sglang:register"' in text
