"""The only place that imports vLLM: start and restart it, move adapters in and out, repair its CPU LoRA path."""
