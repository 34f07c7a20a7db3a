"""A classifier as an energy: text of one label is likely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from edlm_engine.energies.per_candidate import MAX_CANDIDATES, CandidateFunction, check_scale
from edlm_engine.energies.sums import Summable
from edlm_engine.models.denoiser import device_of


class ClassifierEnergy(Summable):
    """E = -scale * log p(label | x0): at scale 1 candidates aim at p_theta(x0 | xt, label).

    classify: gives log-probabilities or logits [n, C] of C >= 2 labels that exclude one another,
        for n texts decoded by `tokenizer` or token ids [n, L] (`on="tokens"`); each row of its own
        candidate alone. A softmax over the labels is taken of them.
    label: in [0, C).

    `log_q` is not used. Raises ValueError for outputs of another shape, and on the CPU for
    probabilities, whose rows are >= 0 and sum to 1.
    """

    def __init__(
        self,
        classify: Callable[..., Any],
        label: int,
        scale: float = 1.0,
        on: Literal["tokens", "text"] = "text",
        tokenizer: Any = None,
        *,
        max_candidates: int = MAX_CANDIDATES,
    ):
        if isinstance(label, bool) or not isinstance(label, int):
            raise TypeError(f"label must be of type int, got {label!r}")
        if label < 0:
            raise ValueError(f"label must be >= 0, got {label}")
        self.label = label
        self.scale = check_scale(scale)
        self.classify = CandidateFunction(classify, on, tokenizer, max_candidates)

    @classmethod
    def from_transformers(
        cls,
        model: Any,
        classifier_tokenizer: Any,
        label: int | str,
        scale: float = 1.0,
        *,
        tokenizer: Any,
        max_candidates: int = MAX_CANDIDATES,
    ) -> ClassifierEnergy:
        """A sequence classifier of transformers with the tokenizer it reads text by.

        label: its number, or its name in the model's `config.label2id`. tokenizer: the engine's,
        which decodes the candidates. Texts are padded to the longest of a call, and cut at the
        classifier's own limit. Raises ValueError for an unknown label, and for a model whose labels
        do not exclude one another.
        """
        config = model.config
        if config.num_labels < 2 or config.problem_type in (
            "multi_label_classification",
            "regression",
        ):
            kind = config.problem_type or f"{config.num_labels} label"
            raise ValueError(f"model must choose one of several labels, got {kind}")
        names = config.label2id
        if isinstance(label, str) and label not in names:
            raise ValueError(f"label must be one of {', '.join(names)}, got {label!r}")
        number = names[label] if isinstance(label, str) else label
        read = TextClassifier(model, classifier_tokenizer)
        return cls(read, number, scale, "text", tokenizer, max_candidates=max_candidates)

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        given = self.classify(x0)
        labels = given.shape[-1]
        if given.dim() != 3 or not given.is_floating_point() or labels < max(2, self.label + 1):
            rows, got = log_q.numel(), [log_q.numel(), *given.shape[2:]]
            raise ValueError(
                f"classify must return real numbers [{rows}, C] with C >= 2 labels, label "
                f"{self.label} among them, got {str(given.dtype).removeprefix('torch.')} {got}"
            )
        given = given.double()
        if given.device.type == "cpu" and _are_probabilities(given):
            raise ValueError("classify must return log-probabilities or logits, got probabilities")
        return (-self.scale * given.log_softmax(dim=-1)[..., self.label]).float()

    __call__ = energy


class TextClassifier:
    """Texts [n] -> logits [n, C], by a model of transformers."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer

    def __call__(self, texts: list[str]) -> Tensor:
        read = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model(**read.to(device_of(self.model))).logits


def _are_probabilities(rows: Tensor) -> bool:
    sums = rows.sum(dim=-1)
    return bool((rows >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
