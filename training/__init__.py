"""Fine-tunes a base model: one YAML in, a LoRA folder or a full model with its lineage out.

Imports `adapters` (the registry) and never `server`. Everything heavy (torch, transformers, peft, datasets)
is imported by the modules that compute, so that `training.config` and `training.errors` stay cheap to import.
"""
