"""Serves one base model with many adapters behind an OpenAI-compatible API. Imports `adapters`, never `training`."""
