"""Several ways of training under one harness: which runs there are, what they say, and the report of it."""
