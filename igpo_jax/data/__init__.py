"""Data pipeline that turns problems into batches of token arrays."""
