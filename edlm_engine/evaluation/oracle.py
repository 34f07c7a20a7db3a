"""Hidden Markov models: a denoiser and a left-to-right model that are never wrong.

A sampler's errors and its models' are told apart by models without error (as in "Is Your Diffusion
Sampler Actually Correct?", arXiv 2602.19619, whose law is the Markov chain given here by
`HiddenMarkov.chain`). A hidden Markov model draws a path of states and, from each state, a token.
Summing over paths is cheap (the forward-backward algorithm), so that of the tokens given any other
tokens everything is known: the marginals a denoiser estimates, the conditionals of a left-to-right
model, log-probabilities, and independent draws of what is hidden.

Computed in float64 on the CPU; sequences in rows, the mask being the token after the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform

LAW, STATE, TOKEN = 111, 112, 113  # what a random stream is for, beside those of the engine
NEVER = -1e30  # log-probability of what cannot be, where infinity times 0 would be NaN


class HiddenMarkov:
    """The law p(x), the sum over z of p(z) times the product over l of emission[z_l, x_l], with
    p(z) = initial[z_1] times the product over l of transition[z_l-1, z_l].

    initial [S], transition [S, S], emission [S, V]: rows of probabilities, float64. The first two
    must be positive, and every token must be emitted by some state: then every sequence is
    possible. Raises ValueError otherwise.
    """

    def __init__(self, initial: Tensor, transition: Tensor, emission: Tensor):
        states, tokens = emission.shape
        given = {"initial": initial, "transition": transition, "emission": emission}
        shapes = {
            "initial": (states,),
            "transition": (states, states),
            "emission": (states, tokens),
        }
        for name, value in given.items():
            if value.shape != shapes[name]:
                raise ValueError(f"{name} must be {shapes[name]}, got {tuple(value.shape)}")
            sums = value.double().sum(-1)
            if not (value >= 0).all() or not torch.allclose(sums, torch.ones_like(sums)):
                raise ValueError(f"{name} must hold rows of probabilities, got sums {sums}")
        if not ((initial > 0).all() and (transition > 0).all() and (emission > 0).any(0).all()):
            raise ValueError(
                "initial and transition must be positive, and every token emitted by some state"
            )
        # Rows of float32 sum to 1 up to rounding only.
        self.initial, self.transition, self.emission = (
            value.double() / value.double().sum(-1, keepdim=True) for value in given.values()
        )
        self.states, self.tokens = states, tokens

    @classmethod
    def random(cls, states: int, tokens: int, *, seed: int = 0, sharpness: float = 3.0):
        """Rows of probabilities proportional to E ** sharpness, E independent exponentials: the
        sharper, the more a state decides."""

        def rows(part: int, *shape: int) -> Tensor:
            places = torch.arange(torch.Size(shape).numel()).view(shape)
            weights = (-uniform(ops.stream_keys(seed, LAW, part, places)).log()) ** sharpness
            return weights / weights.sum(-1, keepdim=True)

        return cls(rows(0, states), rows(1, states, states), rows(2, states, tokens))

    @classmethod
    def chain(cls, initial: Tensor, transition: Tensor):
        """A Markov chain: each state is a token."""
        return cls(initial, transition, torch.eye(len(initial), dtype=torch.float64))

    @property
    def mask_id(self) -> int:
        return self.tokens

    def log_prob(self, xt: Tensor) -> Tensor:
        """log p of the tokens of xt [n, L] that are not masked, the others summed over: [n].

        log p(x | xt) of a completion x is log_prob(x) - log_prob(xt).
        """
        return self._forward(self._evidence(xt))[1]

    def marginals(self, xt: Tensor) -> Tensor:
        """p(x_l | the other tokens of xt that are not masked), at every l: [n, L, V].

        At a masked position that is what a denoiser estimates; at another, the law of its token
        given the others.
        """
        evidence = self._evidence(xt)
        states = self._forward(evidence)[0] * self._backward(evidence)
        return states / states.sum(-1, keepdim=True) @ self.emission

    def next_token(self, tokens: Tensor) -> Tensor:
        """p(x_l | the tokens before it), at every l: [n, L, V]."""
        return self._forward(self._evidence(tokens))[0] @ self.emission

    def draw(self, xt: Tensor, seeds: Sequence[int] | Tensor) -> Tensor:
        """Independent draws of what is masked in xt [n, L], given the rest: tokens [n, L].

        A function of a row and its seed [n] alone.
        """
        keys = ops.stream_keys(torch.as_tensor(seeds), torch.arange(xt.shape[1])[:, None])  # [L, n]
        of_state, of_token = (uniform(ops.stream_keys(keys, use)) for use in (STATE, TOKEN))
        evidence = self._evidence(xt)
        ahead = evidence * self._backward(evidence)
        tokens, law = xt.clone(), self.initial.expand(len(xt), -1)
        for place in range(xt.shape[1]):
            state = _inverse_cdf(law * ahead[:, place], of_state[place])
            token = _inverse_cdf(self.emission[state], of_token[place])
            tokens[:, place] = torch.where(xt[:, place] == self.mask_id, token, xt[:, place])
            law = self.transition[state]
        return tokens

    def enumerate(self, xt: Tensor) -> tuple[Tensor, Tensor]:
        """All completions [V ** m, L] of xt [L] with m masked positions, in the order of numbers
        with the first of these the leading digit, and p of each given the rest."""
        hidden = xt == self.mask_id
        digits = itertools.product(range(self.tokens), repeat=int(hidden.sum()))
        whole = xt.repeat(self.tokens ** int(hidden.sum()), 1)
        whole[:, hidden] = torch.tensor(list(digits), dtype=torch.int64).view(len(whole), -1)
        return whole, (self.log_prob(whole) - self.log_prob(xt[None])).exp()

    def _evidence(self, xt: Tensor) -> Tensor:
        """p(token | state) at every position, 1 where masked: [n, L, S]."""
        seen = torch.cat([self.emission, torch.ones_like(self.emission[:, :1])], dim=1)
        return seen.T[xt]

    def _forward(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """p(z_l | what is seen before l) [n, L, S], and log p of all that is seen [n]."""
        count, length, _ = evidence.shape
        law, log_p = self.initial.expand(count, -1), evidence.new_zeros(count)
        laws = torch.empty_like(evidence)
        for place in range(length):
            laws[:, place] = law
            joint = law * evidence[:, place]
            total = joint.sum(-1, keepdim=True)
            log_p = log_p + total[:, 0].log()
            law = joint / total @ self.transition
        return laws, log_p

    def _backward(self, evidence: Tensor) -> Tensor:
        """p(what is seen after l | z_l), up to a factor of each row and l: [n, L, S]."""
        ahead = torch.ones_like(evidence)
        for place in range(evidence.shape[1] - 1, 0, -1):
            before = (evidence[:, place] * ahead[:, place]) @ self.transition.T
            ahead[:, place - 1] = before / before.sum(-1, keepdim=True)
        return ahead


class OracleDenoiser:
    """The denoiser (see `edlm_engine.Denoiser`) that is never wrong; V + 1 tokens with the mask."""

    def __init__(self, law: HiddenMarkov, length: int):
        self.law, self.length = law, length
        self.mask_id, self.vocab_size = law.mask_id, law.tokens + 1

    def logits(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """log p(x_l | the others seen in xt [n, L]): [n, L, V + 1] float32, the mask impossible."""
        padded = torch.nn.functional.pad(self.law.marginals(xt), (0, 1))
        return padded.log().float().clamp(min=NEVER)


class OracleAR:
    """The left-to-right model that is never wrong; see `edlm_engine.AutoregressiveModel`.

    Its hidden states are its log-probabilities, and its head is the identity.
    """

    first_position, forbidden_id = 0, -1

    def __init__(self, law: HiddenMarkov, length: int):
        self.law, self.length, self.vocab_size = law, length, law.tokens
        self.head = torch.eye(law.tokens), None

    def hidden(self, tokens: Tensor) -> Tensor:
        """log p(x_l | the tokens before) of tokens [n, L]: [n, L, V] float32."""
        return self.law.next_token(tokens).log().float().clamp(min=NEVER)

    logits = hidden


def _inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The place [n] of u [n] in (0, 1) within weights [n, S], never one of weight 0."""
    sums = weights.cumsum(-1)
    total = sums[:, -1]
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return (sums > target[:, None]).int().argmax(-1)
