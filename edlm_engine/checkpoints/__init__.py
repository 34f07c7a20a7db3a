"""From files to models and tokenizers, and back: strict both ways, nothing half written."""
