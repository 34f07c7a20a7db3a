"""Policy gradients: the record has the log-probability of all that was drawn, exactly.

Which positions a step reveals is decided apart from the model, so the log-probability of a
trajectory is the sum of those of its tokens, each under the law at the step that revealed it. Here
a tiny denoiser learns a reward by REINFORCE, its log-probabilities computed again with autograd.

    python examples/policy_gradient.py
"""

import torch
from torch import nn

import edlm_engine as edlm


class TinyDenoiser(nn.Module):
    """Each position sees its neighbourhood; time is told by how much is masked."""

    def __init__(self, vocab: int = 8, length: int = 12, width: int = 32):
        super().__init__()
        self.mask_id, self.vocab_size, self.length = vocab, vocab + 1, length
        self.embed = nn.Embedding(vocab + 1, width)
        self.mix = nn.Conv1d(width, width, 5, padding=2)
        self.head_ = nn.Linear(width, vocab + 1)

    def logits(self, xt, sigma=None):
        return self.head_(self.mix(self.embed(xt).transpose(1, 2)).transpose(1, 2).tanh())


def revealed_log_probs(denoiser, sequences, step):
    """[B, L] with gradient: each token under the law at the step that revealed it, else 0."""
    total = torch.zeros(sequences.shape)
    for number in step.unique().tolist():
        if number == 0:  # known from the start
            continue
        xt = sequences.masked_fill(step >= number, denoiser.mask_id)  # as it was before that step
        logits = denoiser.logits(xt)
        logits[..., denoiser.mask_id] = -torch.inf  # never drawn
        log_p = logits.log_softmax(-1).gather(-1, sequences[..., None])[..., 0]
        total = total + torch.where(step == number, log_p, 0.0)
    return total


def reward(sequences):
    """The share of neighbours that are alike."""
    return (sequences[:, 1:] == sequences[:, :-1]).double().mean(dim=1)


def main(updates: int = 60, batch_size: int = 64, steps: int = 6):
    torch.manual_seed(0)
    denoiser = TinyDenoiser()
    engine = edlm.Engine(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01)
    config = edlm.GenerationConfig(steps=steps, num_candidates=1, record=True)
    rewards, worst = [], 0.0
    for update in range(updates):
        out = engine.generate(batch_size, config=config, seed=update)
        log_p = revealed_log_probs(denoiser, out.sequences, out.record.step)
        worst = max(worst, (log_p - out.record.log_q).abs().max().item())
        gained = reward(out.sequences)
        advantage = (gained - gained.mean()) * batch_size / (batch_size - 1)  # leave-one-out mean
        optimizer.zero_grad()
        (-(advantage * log_p.sum(dim=1)).mean()).backward()
        optimizer.step()
        rewards.append(gained.mean().item())
        if update % 10 == 0:
            print(f"update {update}: reward {rewards[-1]:.3f}")
    print(f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}")
    print(f"recomputed and recorded log-probabilities differ by {worst:.1e} at most")
    return rewards, worst


if __name__ == "__main__":
    main()
