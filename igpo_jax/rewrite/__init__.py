"""Concise solutions for supervised training: rewritten by a language model, or filtered."""
