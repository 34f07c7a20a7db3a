"""Text guided by a reward and a constraint, from either of two laws.

A reward alone tilts the denoiser, p_theta exp(reward); added to an AR energy it tilts the AR model,
p_AR exp(reward), and the denoiser only proposes.

    python examples/guided.py
"""

import edlm_engine as edlm


def talk(texts):
    """How often someone begins or ends to speak: any function of texts, or of token ids [n, L]."""
    return [sum(map(text.count, '“”"')) for text in texts]


def main(batch_size: int = 8, steps: int = 24, candidates: int = 8, length: int = 40):
    engine = edlm.Engine.from_pretrained()
    tokenizer = engine.tokenizer
    reward = edlm.RewardEnergy(talk, scale=4.0, on="text", tokenizer=tokenizer)
    # Must match the whole text. Breaking it costs 1000 nats, so that a step in which all candidates
    # break it still has a choice; penalty=math.inf would end the generation there.
    no_he = edlm.ConstraintEnergy(r"(?s)(?!.*\b[Hh]e\b).*", tokenizer=tokenizer)
    ends = edlm.TokenCountEnergy({tokenizer.bos_id: 0})  # no end of text inside

    energies = {
        "p_theta": None,
        "p_theta exp(reward), no he": edlm.tilted(reward, no_he),
        "p_AR": engine.energy,
        "p_AR exp(reward), no he": edlm.tilted(reward, no_he, ends, model=engine.energy.model),
    }
    found = {}
    config = edlm.GenerationConfig(steps=steps, num_candidates=candidates, length=length)
    for name, energy in energies.items():
        guided = edlm.Engine(engine.denoiser, energy, tokenizer)
        out = guided.generate(batch_size, config=config, seed=1)
        mean = sum(talk(out.texts)) / batch_size
        clean = sum(no_he.holds.fn([text])[0] for text in out.texts)
        found[name] = mean, clean
        print(f"\n{name}: {mean:.1f} quotation marks a text, {clean} of {batch_size} without he")
        print(f"  {out.texts[0]!r}")
    return found


if __name__ == "__main__":
    main()
