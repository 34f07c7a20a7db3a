"""Samplers compared over one fixed denoiser: `edlm bench samplers`.

A sampler is one function, `sampler(denoiser, energy, canvas, seeds)`: a model as
`edlm_engine.Denoiser`, an energy as `edlm_engine.ARResidualEnergy` (its `model` is the AR model),
tokens [B, L] int64 with `denoiser.mask_id` where free, and one int for each sequence. It returns
the finished tokens [B, L]; what it calls of the models is counted from outside. One whose work that
does not show (a cache, a model of its own) returns (tokens, nfe, ar_passes, token_evaluations)
instead: evaluations of either model by a sequence, and the positions that went through them, each a
number or one for each sequence.
"""
