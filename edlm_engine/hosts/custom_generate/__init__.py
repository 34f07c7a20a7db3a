"""The folder that transformers takes as `custom_generate`."""
