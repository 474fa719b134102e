"""Engines that write for a model whose inside another program holds: a server, or vLLM."""
