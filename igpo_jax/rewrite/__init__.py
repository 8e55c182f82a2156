"""Concise solutions for supervised training, either rewritten by a language model or filtered."""
