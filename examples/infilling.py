"""Gaps in a text filled in: known tokens stand anywhere, also after the gap.

python examples/infilling.py
"""

import torch

import edlm_engine as edlm

# A list is text that is known, a number is a gap of so many tokens.
TEXT = [
    ["She closed the"],
    2,
    ["and looked at him for a"],
    4,
    ["\n\n“I do not"],
    3,
    [",” he said."],
]


def main(batch_size: int = 2, steps: int | None = None, candidates: int = 8):
    engine = edlm.Engine.from_pretrained()
    mask = engine.denoiser.mask_id

    # A canvas holds the mask where the engine is free; a prompt and a suffix are short for it.
    row: list[int] = []
    for part in TEXT:
        row += [mask] * part if isinstance(part, int) else engine.tokenizer.encode(part[0])
    canvas = torch.tensor(row).repeat(batch_size, 1)

    # Without steps one position is revealed at a time, in random order: as many denoiser
    # evaluations as there are gaps to fill, and no more.
    config = edlm.GenerationConfig(steps=steps, num_candidates=candidates, length=len(row))
    out = engine.generate(batch_size, config=config, seed=3, canvas=canvas)

    free = canvas == mask
    assert (out.sequences[~free] == canvas[~free]).all()  # what is known never changes
    print(repr(engine.tokenizer.decode(row)))  # a block for each token to fill in
    for text, evaluations in zip(out.texts, out.nfe.tolist(), strict=True):
        print(f"{text!r}\n  {evaluations} denoiser evaluations")
    return canvas, out


if __name__ == "__main__":
    main()
