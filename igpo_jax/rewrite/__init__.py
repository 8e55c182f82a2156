"""Makes concise solutions for supervised training. A language model rewrites the solutions, or they are only filtered."""
