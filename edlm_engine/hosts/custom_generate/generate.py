"""What transformers loads for `custom_generate=FOLDER`; see `edlm_engine.hosts.transformers`."""

from edlm_engine.hosts.transformers import generate  # noqa: F401
