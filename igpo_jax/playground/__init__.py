"""A local page on which one watches a model denoise: python -m igpo_jax.playground."""
