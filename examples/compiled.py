"""A generation's step as one graph: compiled whole, exported, and packaged for C++.

`GraphStep` is a function of tensors alone: canvas, seeds and the steps' numbers in, canvas and
log-probabilities out. aoti.cpp generates by the package, in a program without Python.

    python examples/compiled.py
"""

from pathlib import Path

import torch

import edlm_engine as edlm
from edlm_engine.hosts.graph_step import GraphStep

VOCAB, LENGTH, STEPS = 32, 12, 6
MASK = VOCAB


class Denoiser(torch.nn.Module):
    """A small network with random weights: any module with `logits` and these three numbers."""

    mask_id, vocab_size, length = MASK, VOCAB + 1, LENGTH

    def __init__(self, width: int = 16):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB + 1, width)
        self.mix = torch.nn.Linear(LENGTH * width, LENGTH * width)
        self.out = torch.nn.Linear(width, VOCAB + 1)

    def logits(self, xt, sigma):
        mixed = torch.tanh(self.mix(self.embed(xt).flatten(1)) + sigma[:, None])
        return 4 * self.out(mixed.unflatten(1, (LENGTH, -1)))


def ascending(x0, xt, log_q, t):
    """An energy: tokens larger than the one before are likelier."""
    return -0.5 * (x0[..., 1:] > x0[..., :-1]).sum(dim=-1).float()


def generate(step, seeds):
    canvas = torch.full((len(seeds), LENGTH), MASK)
    for number in range(1, STEPS + 2):
        canvas, _ = step(canvas, seeds, torch.full_like(seeds, number))
    return canvas


def main(batch_size: int = 3, package: str = "step.pt2"):
    torch.manual_seed(0)
    denoiser = Denoiser().eval().requires_grad_(False)
    config = edlm.GenerationConfig(steps=STEPS, num_candidates=4)
    engine = edlm.Engine(denoiser, ascending)
    found = {"engine": engine.generate(batch_size, config=config, seed=5).sequences}

    step = GraphStep(denoiser, STEPS, energy=ascending, num_candidates=4)
    seeds = edlm.ops.stream_keys(5, torch.arange(batch_size))  # those of seed=5 above
    found["torch.compile"] = generate(torch.compile(step, fullgraph=True), seeds)

    inputs = (torch.full((batch_size, LENGTH), MASK), seeds, torch.ones_like(seeds))
    rows = {0: torch.export.Dim.DYNAMIC}  # one program for batches of any size
    program = torch.export.export(step, inputs, dynamic_shapes=(rows, rows, rows))
    found["torch.export"] = generate(program.module(), seeds)

    torch._inductor.aoti_compile_and_package(program, package_path=package)
    found["AOTInductor"] = generate(torch._inductor.aoti_load_package(package), seeds)

    for name, tokens in found.items():
        print(f"{name}: {tokens[0].tolist()}")
    library = Path(edlm.__file__).with_name("_torch.so")
    print("The same without Python, by the program of aoti.cpp:")
    print(f"aoti {package} {library} {STEPS} {LENGTH} {MASK}", *seeds.tolist())
    return found, seeds


if __name__ == "__main__":
    main()
