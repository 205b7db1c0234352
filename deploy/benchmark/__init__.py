"""Measures servers from outside, over HTTP only, so that any OpenAI-compatible one can be held against ours."""
