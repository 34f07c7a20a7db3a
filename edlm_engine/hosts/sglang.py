"""SGLang's diffusion decoding by this engine's draws: the algorithm `EDLM`. Experimental.

A plugin of the group `sglang.srt.plugins`: where both are installed, `--dllm-algorithm EDLM` takes
it. It gives what SGLang's own algorithms refuse: a seed per request, draws that are exact into the
far tail, and the log-probability of each under the law it was drawn from. Read against SGLang
0.5.23, and not yet run in its server; other versions are probed, and refused where they differ.

A block is filled by the ancestral process: each position has a step of its own by the reveal plan,
and steps that reveal nothing are skipped, so that no model call is wasted. All is addressed by
(seed, position), so a request gives the same tokens in any batch, in both of SGLang's modes, up to
the rounding of the model's own arithmetic.

`--dllm-algorithm-config FILE` holds `steps` (32, the most per block), `temperature`, `top_p`,
`top_k`, `min_p`, and `log_probs`, a file to which each block adds a line of JSON: `rid`, `position`
of its first drawn token, and `log_q` by position. A request's seed is `custom_params["seed"]`, or
its `sampling_seed`, or else made of its `rid`. A request that asks for another law is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import OrderedDict
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.arrays import signed_word
from edlm_engine.sampling.purposes import CANDIDATES, REVEAL
from edlm_engine.sampling.schedule import LogLinearSchedule

NAME = "EDLM"
WANTED = {
    "init_step_state": ["self", "forward_batch"],
    "max_steps": ["self", "block_size"],
    "step": ["self", "forward_batch", "full_logits", "states"],
    "validate_request": ["req"],
    "_run_sync": ["self", "model_runner", "forward_batch"],
    "_run_fdfo": ["self", "model_runner", "forward_batch", "algo_states"],
}
LAW = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
REMEMBERED = 1 << 20  # requests
EVERY_TOKEN = (-1, 0, 1 << 30)  # SGLang's words for no top_k


def register() -> None:
    """What the entry point calls in each of SGLang's processes."""
    from sglang.srt.dllm import algorithm
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm

    algorithm.algo_name_to_cls[NAME] = algorithm_of(DllmAlgorithm)


def check(base: type) -> None:
    """RuntimeError if the base class is not the one that was read."""
    for name, wanted in WANTED.items():
        method = getattr(base, name, None)
        found = None if method is None else list(inspect.signature(method).parameters)
        if found != wanted:
            what = "is not there" if found is None else f"takes {', '.join(found)}"
            raise RuntimeError(
                f"edlm_engine.hosts.sglang was written for SGLang 0.5.23, where {base.__name__}."
                f"{name} takes {', '.join(wanted)}; in SGLang {_version()} it {what}"
            )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:
        return "of unknown version"


def seed_of(asked: Any, rid: str) -> int:
    """A request's seed by its sampling parameters, or else by its name."""
    custom = getattr(asked, "custom_params", None) or {}
    seed = custom.get("seed", getattr(asked, "sampling_seed", None))
    if seed is None:
        return int.from_bytes(hashlib.blake2b(rid.encode(), digest_size=8).digest(), "big")
    return int(seed)


@cache
def algorithm_of(base: Any) -> type:
    """The algorithm as a class of SGLang's `DllmAlgorithm`."""
    check(base)

    class EDLM(base):
        # What `validate_request` saw of each request: a batch has only the names. The oldest go.
        seeds: ClassVar[OrderedDict[str, int]] = OrderedDict()

        def __init__(self, config: Any):
            super().__init__(config)
            given = dict(config.algorithm_config or {})
            given.pop("block_size", None)  # SGLang's own
            self.steps, self.log_probs = int(given.pop("steps", 32)), given.pop("log_probs", None)
            self.law: dict[str, Any] = {
                name: type(at)(given.pop(name, at)) for name, at in LAW.items()
            }
            if given or self.steps < 1:
                names = ", ".join(["steps", "log_probs", *LAW])
                raise ValueError(f"{NAME} takes {names}, steps >= 1; got {config.algorithm_config}")
            schedule = LogLinearSchedule()
            self.mask_probs = schedule.mask_prob(schedule.times(self.steps))

        @classmethod
        def validate_request(cls, req: Any) -> str | None:
            asked = req.sampling_params
            for name, plain in LAW.items():
                value = getattr(asked, name, plain)
                if value != plain and not (name == "top_k" and value in EVERY_TOKEN):
                    return f"{NAME} takes {name} from --dllm-algorithm-config, not from a request"
            cls.seeds[req.rid] = seed_of(asked, req.rid)
            if len(cls.seeds) > REMEMBERED:
                cls.seeds.popitem(last=False)
            return None

        def max_steps(self, block_size: int) -> int:
            return min(block_size, self.steps + 1) + 1  # one more to write the block's KV cache

        def init_step_state(self, forward_batch: Any) -> list[dict[str, Any]]:
            """A seed, and what was drawn so far, for the block of each request."""
            seeds = [self.seeds.get(rid, seed_of(None, rid)) for rid in forward_batch.rids]
            return [{"seed": seed, "log_q": {}} for seed in seeds]

        def step(self, forward_batch: Any, full_logits: Tensor, states: list) -> list[bool]:
            shape = (forward_batch.batch_size, self.block_size)
            xt, position = forward_batch.input_ids.view(shape), forward_batch.positions.view(shape)
            masked = xt == self.mask_id
            if forward_batch.dllm_prompt_mask is not None:
                masked = masked & ~forward_batch.dllm_prompt_mask
            done = (
                ~masked.any(dim=1)
            ).tolist()  # before this step, so the KV cache holds the block
            seeds = ops.stream_keys(torch.tensor([signed_word(state["seed"]) for state in states]))
            seeds = seeds.to(xt.device)
            plan = self.plan(seeds, position[:, 0])
            number = plan.where(masked, self.steps + 2).amin(dim=1)  # the next that reveals some
            shown = masked & (plan == number[:, None])
            row, column = shown.nonzero(as_tuple=True)
            if len(row):
                place = position[row, column]
                keys = ops.stream_keys(seeds[row], CANDIDATES, number[row], place)
                logits = full_logits.view(*shape, -1)[row, column]
                tokens, log_q = ops.sample_candidates(
                    logits, keys, 1, forbidden_id=self.mask_id, **self.law
                )
                after = xt.clone()
                after[row, column] = tokens[:, 0].to(xt.dtype)
                forward_batch.input_ids.copy_(after.view(-1))  # the same tensor, for CUDA graphs
                drawn = zip(row.tolist(), place.tolist(), log_q[:, 0].tolist(), strict=True)
                for i, at, value in drawn:
                    states[i]["log_q"][at] = value
            for i, finished in enumerate(done):
                if finished and states[i]["log_q"]:
                    self.report(forward_batch.rids[i], states[i])
            return done

        def plan(self, seeds: Tensor, first: Tensor) -> Tensor:
            """The step of each position: [B, block] in 1..steps + 1, that of its block's start."""
            keys = ops.stream_keys(seeds, REVEAL, first.long())
            return ops.reveal_steps(keys, self.block_size, self.mask_probs.to(keys.device))

        def report(self, rid: str, state: dict[str, Any]) -> None:
            """Once a block is whole: its log-probabilities, by position in the sequence."""
            found, state["log_q"] = dict(sorted(state["log_q"].items())), {}
            if self.log_probs:
                line = {"rid": rid, "position": min(found), "log_q": found}
                with open(self.log_probs, "a") as file:
                    file.write(json.dumps(line) + "\n")

    EDLM.__name__ = NAME
    return EDLM
