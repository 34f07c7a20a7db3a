"""Training a denoiser or an autoregressive model on text files; no generation needs any of it."""
