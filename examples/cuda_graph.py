"""A CUDA graph of your own around a step, captured once and replayed for every step and batch.

What a step draws depends on its seeds and its number alone, and both are tensors: so a replay
draws new numbers, where a generator's state would have to be carried along. Elsewhere than on CUDA
this says that there is nothing to capture.

    python examples/cuda_graph.py
"""

import torch

import edlm_engine as edlm
from edlm_engine.hosts.graph_step import GraphStep

STEPS, LENGTH = 16, 32


def capture(step, canvas, seeds, number):
    """A graph of `step` that reads these three tensors and writes the next canvas into `canvas`."""

    def once():
        after, _ = step(canvas, seeds, number)
        canvas.copy_(after)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is set up in a first call is not captured
        once()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph


@torch.inference_mode()
def main(batch_size: int = 4):
    if not torch.cuda.is_available():
        print("no CUDA device: there is nothing to capture")
        return None
    engine = edlm.Engine.from_pretrained(energy=None)
    denoiser, mask = engine.denoiser.to("cuda"), engine.denoiser.mask_id
    step = GraphStep(denoiser, STEPS).to("cuda")
    canvas = torch.full((batch_size, LENGTH), mask, device="cuda")
    seeds = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
    number = torch.ones_like(seeds)
    graph = capture(step, canvas, seeds, number)

    texts = []
    for seed in (0, 1):
        canvas.fill_(mask)
        seeds.copy_(edlm.ops.stream_keys(seed, torch.arange(batch_size, device="cuda")))
        for n in range(1, STEPS + 2):
            number.fill_(n)
            graph.replay()
        texts += [engine.tokenizer.decode(row) for row in canvas.tolist()]
    print(*texts, sep="\n")
    return texts


if __name__ == "__main__":
    main()
