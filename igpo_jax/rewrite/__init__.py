"""Concise rewritten solutions."""
