"""Modules laid out like those of MDLM, EDLM, ReMDM and DUO, on models that can be enumerated.

Any models of one's own will do too. Written from what those codes do, in the names that they give
to what other code reaches for: the configuration, the loops, their caches, and their faults. Their
draws are the float32 race, which is exact enough for a handful of tokens.
"""

import itertools
from types import SimpleNamespace

import torch
from torch import nn

from bench.baselines import released_race

NEVER = -1e6


def _sample_categorical(categorical_probs, num_samples=1):
    return released_race(categorical_probs.float(), num_samples)


def namespace(values):
    nested = {k: namespace(v) if isinstance(v, dict) else v for k, v in values.items()}
    return SimpleNamespace(**nested)


class Backbone(nn.Module):
    """The logits of a `TinyDenoiser`: one product of one-hot states, plus a tilt with sigma."""

    def __init__(self, tiny):
        super().__init__()
        self.tiny = tiny
        self.head = nn.Linear(len(tiny.table) * tiny.length, tiny.vocab)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(tiny.table.reshape(-1, tiny.vocab)).T)
            self.head.bias.zero_()

    def forward(self, x, sigma):
        powers = torch.tensor([self.tiny.vocab**i for i in reversed(range(self.tiny.length))])
        rows = (x * powers).sum(dim=1)[:, None] * self.tiny.length + torch.arange(self.tiny.length)
        logits = self.head(nn.functional.one_hot(rows, self.head.in_features).float())
        if self.tiny.tilt.any():
            logits = logits + torch.from_numpy(self.tiny.tilt) * sigma[:, None, None]
        return logits


class LogLinearNoise(nn.Module):
    def forward(self, t):
        return -torch.log1p(-0.999 * t), 0.999 / (1 - 0.999 * t)


class CosineNoise(nn.Module):
    def forward(self, t):
        cos, sin = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
        return -torch.log(1e-3 + 0.999 * cos), 0.999 * sin * torch.pi / 2 / (1e-3 + 0.999 * cos)


def subs(logits, x, mask_index):
    logits[:, :, mask_index] += NEVER
    logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    shown = x != mask_index
    logits[shown] = NEVER
    logits[shown, x[shown]] = 0
    return logits


class Mdlm(nn.Module):
    """MDLM's Diffusion, as far as it samples.

    tiny: a `TinyDenoiser`, or its `vocab`, `length` and `mask_id` for the `backbone` given.
    """

    def __init__(self, tiny, backbone=None, *, batch_size=2, time_conditioning=False, **sampling):
        super().__init__()
        self.backbone, self.noise = backbone or Backbone(tiny), LogLinearNoise()
        self.vocab_size, self.mask_index = tiny.vocab, tiny.mask_id
        self.parameterization, self.time_conditioning = "subs", time_conditioning
        defaults = {"predictor": "ddpm_cache", "steps": 3, "noise_removal": True}
        self.config = namespace(
            {
                "sampling": defaults | sampling,
                "model": {"length": tiny.length},
                "loader": {"eval_batch_size": batch_size},
                "noise": {"type": "loglinear"},
            }
        )
        self.sampler = self.config.sampling.predictor
        self.entered = 0  # calls of forward

    def forward(self, x, sigma):
        self.entered += 1
        sigma = sigma.squeeze(-1) if sigma.ndim > 1 else sigma
        sigma = sigma if self.time_conditioning else torch.zeros_like(sigma)
        return subs(self.backbone(x, sigma), x, self.mask_index)

    def _sample_prior(self, *sizes):
        return torch.full(sizes, self.mask_index)

    def _merged(self, x, drawn):
        return torch.where(x == self.mask_index, drawn, x)

    def _ddpm_update(self, x, t, dt):
        moved = [1 - torch.exp(-self.noise(time)[0])[:, :, None] for time in (t, t - dt)]
        q_xs = self.forward(x, self.noise(t)[0]).exp() * (moved[0] - moved[1])
        q_xs[:, :, self.mask_index] = moved[1][:, :, 0]
        return self._merged(x, _sample_categorical(q_xs))

    def _ddpm_caching_update(self, x, t, dt, p_x0=None):
        if p_x0 is None:
            p_x0 = self.forward(x, self.noise(t)[0]).exp()
        q_xs = p_x0 * dt
        q_xs[:, :, self.mask_index] = t - dt
        return p_x0, self._merged(x, _sample_categorical(q_xs))

    @torch.no_grad()
    def _sample(self, num_steps=None, eps=1e-5):
        steps = num_steps or self.config.sampling.steps
        x = self._sample_prior(self.config.loader.eval_batch_size, self.config.model.length)
        times, dt, cache = torch.linspace(1, eps, steps + 1), (1 - eps) / steps, None
        for time in times[:-1]:
            x, cache = self._step(x, time * torch.ones(len(x), 1), dt, cache)
        if self.config.sampling.noise_removal:
            x = self.forward(x, self.noise(times[-1:].expand(len(x), 1))[0]).argmax(dim=-1)
        return x

    def _step(self, x, t, dt, cache):
        if self.sampler == "ddpm":
            return self._ddpm_update(x, t, dt), None
        p_x0, after = self._ddpm_caching_update(x, t, dt, p_x0=cache)
        kept = torch.equal(after, x) and not self.time_conditioning
        return after, p_x0 if kept else None

    def restore_model_and_sample(self, num_steps, eps=1e-5):
        self.backbone.eval()
        samples = self._sample(num_steps=num_steps, eps=eps)
        self.backbone.train()
        return samples


class ArBackbone(nn.Module):
    """An AR model, such as `TableAR`, behind one last product."""

    def __init__(self, ar):
        super().__init__()
        self.ar = ar
        weight, bias = ar.head
        self.output_layer = nn.Linear(weight.shape[1], weight.shape[0])
        self.output_layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, tokens):
        return self.output_layer(self.ar.hidden(tokens)[:, 1:])


class Edlm(Mdlm):
    """EDLM's EBM: `ar` an AR model; or, without one, a learned energy, a table of (x0, xt)."""

    def __init__(self, tiny, ar=None, backbone=None, **options):
        energy = {"is_size": 2, "is_start": 1.0, "is_end": 0.0, "is_temp": 1.0}
        super().__init__(tiny, backbone, **energy | {"ar_carry_over": True} | options)
        self.config.ebm_backbone = "hf_dit" if ar is None else "ar"
        if ar is None:
            torch.manual_seed(3)
            self.ebm = nn.Embedding(len(tiny.table), len(tiny.table))
        else:
            self.ebm = ArBackbone(ar)
        self.backbone.ebm = self.ebm

    def ebm_forward(self, xt, sigma, x0=None, log_p_x0=None, attention_mask=None):
        if self.config.ebm_backbone == "hf_dit":
            powers = torch.tensor([self.vocab_size**i for i in reversed(range(x0.shape[1]))])
            table = self.ebm((x0 * powers).sum(dim=1)) * (1 + 0.5 * sigma.flatten()[:, None])
            return table.gather(1, (xt * powers).sum(dim=1, keepdim=True))
        logits = self.ebm(x0)
        logits[:, :, self.mask_index] = NEVER
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        if self.config.sampling.ar_carry_over:
            logits = torch.where((xt[:, 1:] != self.mask_index)[..., None], NEVER, logits)
            kept = torch.where(xt[:, 1:] != self.mask_index, 0.0, NEVER)
            given = logits.gather(-1, xt[:, 1:, None])[..., 0]
            logits.scatter_(-1, xt[:, 1:, None], torch.maximum(given, kept)[..., None])
        log_p = logits.gather(-1, x0[:, 1:, None])[..., 0].sum(dim=-1, keepdim=True)
        return log_p_x0.gather(-1, x0[:, :, None])[..., 0].sum(dim=-1, keepdim=True) - log_p

    def _step(self, x, t, dt, cache):
        p_x0, after = self._ddpm_caching_update(x, t, dt, p_x0=cache)
        sampling = self.config.sampling
        if cache is None and not (t[0] > sampling.is_start or t[0] < sampling.is_end):
            k = sampling.is_size
            x0 = _sample_categorical(p_x0, num_samples=k)
            energy = self.ebm_forward(
                x.repeat(k, 1), t.repeat(k, 1), x0=x0, log_p_x0=p_x0.repeat(k, 1, 1)
            )
            weights = torch.softmax(energy.view(len(x), k) / sampling.is_temp, dim=-1)
            chosen = x0.view(len(x), k, -1)[
                torch.arange(len(x)), torch.multinomial(weights, 1)[:, 0]
            ]
            p_x0 = nn.functional.one_hot(chosen, self.vocab_size).float()
            _, after = self._ddpm_caching_update(x, t, dt, p_x0=p_x0)
        kept = torch.equal(after, x) and not self.time_conditioning
        return after, p_x0 if kept else None


def remdm_nucleus(probs, mass):
    falling, order = probs.sort(dim=-1, descending=True)
    keep = falling.cumsum(dim=-1) <= mass
    keep[..., 0] = True
    falling = falling * keep
    return torch.zeros_like(probs).scatter_(-1, order, falling / falling.sum(-1, keepdim=True))


class Remdm(Mdlm):
    """ReMDM's fork."""

    def __init__(self, tiny, *, sampler="mdlm", nucleus_p=1.0, eta=0.3, **options):
        remasking = {"eta": eta, "t_on": 0.7, "t_off": 0.3, "alpha_on": 0.5, "dfm": False}
        super().__init__(tiny, sampler=sampler, nucleus_p=nucleus_p, **remasking | options)

    def _sample(self, num_steps=None, eps=1e-5):
        self.conf = torch.full(
            (self.config.loader.eval_batch_size, self.config.model.length), -torch.inf
        )
        return super()._sample(num_steps, eps)

    def _step(self, x, t, dt, cache):
        if cache is None:
            cache = self.forward(x, self.noise(t)[0]).exp()
            if self.config.sampling.nucleus_p < 1:
                cache = remdm_nucleus(cache, self.config.sampling.nucleus_p)
        after = self._remdm(x, t, dt, cache)
        kept = torch.equal(after, x) and not self.time_conditioning
        return after, cache if kept else None

    def _mix(self, x, p_x0, shown, hidden):
        """shown, hidden: (weight of p_x0, weight of the mask) where a token is, and where not."""
        mixed = []
        for token, mask in (shown, hidden):
            q_xs = p_x0 * token
            q_xs[..., self.mask_index] = mask
            mixed.append(q_xs)
        is_shown = (x != self.mask_index)[..., None]
        return _sample_categorical(torch.where(is_shown, *mixed))

    def _remdm(self, x, t, dt, p_x0):
        sampling, time = self.config.sampling, t[0].item()
        if sampling.sampler == "mdlm":
            return super()._ddpm_caching_update(x, t, dt, p_x0)[1]
        if sampling.sampler == "remdm-loop":
            on, off, alpha = sampling.t_on, sampling.t_off, sampling.alpha_on
            if off < time <= on:
                sigma = sampling.eta
                reveal = (alpha - (1 - sigma) * alpha) / (1 - alpha)
                stay = (1 - alpha - alpha * sigma) / (1 - alpha)
                return self._mix(x, p_x0, (1 - sigma, sigma), (reveal, stay))
            line = (
                (lambda s: 1 - (1 - s) * alpha / (1 - on))
                if time > on
                else (lambda s: s * (1 - alpha) / off)
            )
            q_xs = p_x0 * (line(time) - line(time - dt))
            q_xs[..., self.mask_index] = line(time - dt)
            return self._merged(x, _sample_categorical(q_xs))
        before, after = 1 - time, 1 - time + dt
        most = min(1, (1 - after) / before) if before > 0 else 1
        if sampling.sampler == "remdm-conf":
            share = self.conf.softmax(dim=-1)
            share[x == self.mask_index] = 0
            sigma = share * most
        else:
            sigma = {
                "forward-backward": (after - before) / before if before > 0 else 1,
                "remdm-cap": min(sampling.eta, (1 - after) / before)
                if before > 0
                else sampling.eta,
                "remdm-rescale": sampling.eta * most,
            }[sampling.sampler] * torch.ones(x.shape)
        wide = sigma[..., None]
        reveal = (after - (1 - wide) * before) / (1 - before)
        stay = (1 - after - sigma * before) / (1 - before)
        xs = self._mix(x, p_x0, (1 - wide, sigma), (reveal, stay))
        shows = (x == self.mask_index) & (xs != self.mask_index)
        self.conf[shows] = -p_x0.gather(-1, xs[..., None])[..., 0][shows]
        self.conf[xs == self.mask_index] = -torch.inf
        return xs


class AlphaNoise(nn.Module):
    """DUO's noise: the derivative of alpha, and alpha."""

    def __init__(self, cosine=False):
        super().__init__()
        self.cosine = cosine

    def forward(self, t):
        t = 0.999 * t
        if self.cosine:
            angle = torch.pi / 2 * (1 - t)
            return -torch.sin(angle) * torch.pi / 2, 1 - torch.cos(angle)
        return -0.999 * torch.ones_like(t), 1 - t


class Duo(Mdlm):
    """DUO's masked baseline."""

    def __init__(self, tiny, *, p_nucleus=1.0, noise_removal="ancestral", cosine=False, **options):
        options = {"predictor": "ancestral_cache", "noise_removal": noise_removal} | options
        super().__init__(tiny, p_nucleus=p_nucleus, use_float64=True, **options)
        self.noise, self.num_tokens = AlphaNoise(cosine), tiny.length

    _sample = None  # it has another loop

    def _sigma_from_alphat(self, alpha_t):
        return -torch.log(alpha_t)

    def forward(self, xt, sigma, labels=None, weights=None):
        assert sigma.ndim == 2 and labels is None
        return super().forward(xt, sigma.mean(-1))

    def _ancestral_update(self, x, t, s, p_x0):
        _, before = self.noise(t)
        after = torch.ones_like(before) if s is None else self.noise(s)[1]
        if p_x0 is None:
            log_p = self.forward(x, self._sigma_from_alphat(before)).double()
            if self.config.sampling.p_nucleus < 1:
                falling, order = log_p.sort(dim=-1, descending=True)
                over = falling.softmax(-1).cumsum(-1) > self.config.sampling.p_nucleus
                over = torch.cat([torch.zeros_like(over[..., :1]), over[..., :-1]], dim=-1)
                log_p.masked_fill_(torch.zeros_like(over).scatter_(-1, order, over), -torch.inf)
            p_x0 = log_p.exp()
        q_xs = p_x0 * ((after - before) / (1 - before))[..., None]
        q_xs[..., self.mask_index] = (1 - after) / (1 - before)
        return p_x0, self._merged(x, _sample_categorical(q_xs))

    @torch.no_grad()
    def generate_samples(self, num_samples, labels=None, num_steps=None, eps=1e-5):
        steps = num_steps or self.config.sampling.steps
        x, cache = self._sample_prior(num_samples, self.num_tokens), None
        times = torch.linspace(1, eps, steps + 1)[:, None, None] * torch.ones(num_samples, 1)
        for t, s in itertools.pairwise(times):
            p_x0, after = self._ancestral_update(x, t, s, cache)
            cache = p_x0 if torch.equal(after, x) and not self.time_conditioning else None
            x = after
        if self.config.sampling.noise_removal == "ancestral":
            _, x = self._ancestral_update(x, times[-1], None, cache)
        elif self.config.sampling.noise_removal == "greedy":
            x = self.forward(x, self._sigma_from_alphat(self.noise(times[-1])[1])).argmax(dim=-1)
        return x

    def restore_model_and_sample(self, num_steps, eps=1e-5):
        return self.generate_samples(
            num_samples=self.config.loader.eval_batch_size, num_steps=num_steps, eps=eps
        )
