"""Rollouts for a trainer: prompts in, prompt ids, completion ids and log-probabilities out.

The dict is what TRL's `GRPOTrainer(rollout_func=...)` takes; nothing of it is needed here. Further
keys go to the reward functions.

    python examples/rollouts.py
"""

from functools import partial

import edlm_engine as edlm


def rollout(engine, config, end_id, prompts, trainer=None, *, seed=0):
    """One completion for each of n prompts, texts or chats.

    logprobs: of each completion token, under the law it was drawn from, at the step that revealed
    it; `steps` says which that was. So they are those of the trajectory, which a trainer computes
    again as in policy_gradient.py, not by one pass from left to right. With one candidate their sum
    is the log-probability of all that was drawn.
    """
    if trainer is not None:
        seed = trainer.state.global_step  # other numbers at every step, the same in every run
    tokenizer = engine.tokenizer
    prompt_ids = [
        tokenizer.encode(prompt)
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in prompts
    ]
    out = engine.generate(len(prompts), config=config, seed=seed, prompt=prompt_ids)
    result = {"prompt_ids": prompt_ids, "completion_ids": [], "logprobs": [], "steps": []}
    for b, known in enumerate(prompt_ids):
        completion = out.sequences[b, len(known) :].tolist()
        # Up to the end of text and with it; what lies behind is not read, so it is not trained.
        kept = completion.index(end_id) + 1 if end_id in completion else len(completion)
        drawn = slice(len(known), len(known) + kept)
        result["completion_ids"].append(completion[:kept])
        result["logprobs"].append(out.record.log_q[b, drawn].tolist())
        result["steps"].append(out.record.step[b, drawn].tolist())
    return result


def main(num_generations: int = 2, steps: int = 16, length: int = 32):
    engine = edlm.Engine.from_pretrained(energy=None)
    config = edlm.GenerationConfig(steps=steps, length=length, num_candidates=1, record=True)
    rollout_func = partial(rollout, engine, config, engine.tokenizer.bos_id)  # ends documents too

    # A trainer gives each prompt as often as it wants completions of it: a group to compare.
    prompts = ["The old house ", "She looked at "]
    repeated = [prompt for prompt in prompts for _ in range(num_generations)]
    result = rollout_func(repeated)
    for prompt, ids, logprobs in zip(
        repeated, result["completion_ids"], result["logprobs"], strict=True
    ):
        mean = sum(logprobs) / len(logprobs)
        print(f"{prompt!r} + {engine.tokenizer.decode(ids)!r}: {mean:.2f} nats a token")
    return engine, repeated, result


if __name__ == "__main__":
    main()
