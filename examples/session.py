"""A session: requests join a running batch midway, each with its own settings, and leave when done.

Each text is the one that `generate` gives for the request alone.

    python examples/session.py
"""

import edlm_engine as edlm


def main(steps: int = 16, length: int = 24):
    engine = edlm.Engine.from_pretrained()
    session = engine.session(max_sequences=3)
    requests = [
        edlm.Request(config={"steps": steps, "length": length, "num_candidates": 4}, seed=1),
        edlm.Request(config={"steps": steps, "length": length}, seed=2, prompt="The old house "),
        edlm.Request(config={"steps": 4, "length": length // 2, "temperature": 0.8}, seed=3),
        edlm.Request(config={"steps": steps, "length": length, "order": "confidence"}, seed=4),
    ]
    waiting, handles, texts, step = list(enumerate(requests)), {}, {}, 0
    while waiting or len(session):
        # One request every two steps, and no more than there is room for.
        if waiting and step % 2 == 0:
            try:
                handles[session.add(waiting[0][1])] = waiting[0][0]
                waiting.pop(0)
            except edlm.SessionFull as full:
                print(f"step {step}: request {waiting[0][0]} waits, {full}")
        taken = session.step()
        step += 1
        for done in session.finished():  # handle, generation, error
            number = handles[done.handle]
            texts[number] = done.error or done.generation.texts[0]
            print(f"step {step} of {taken} sequences ends request {number}: {texts[number]!r}")

    alone = [
        engine.generate(config=r.config, seed=r.seed, prompt=r.prompt).texts[0] for r in requests
    ]
    same = [texts[i] == text for i, text in enumerate(alone)]
    print(f"the same as alone: {same}")
    return texts, alone


if __name__ == "__main__":
    main()
