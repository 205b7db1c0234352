"""The registry of adapters: what a version is, what may become one, and where versions are kept.

Imports nothing else of OneBase, and neither torch nor vllm: everything here is records, files and checks.
"""
