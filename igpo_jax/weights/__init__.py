"""Reading and writing of weights: Hugging Face folders, model folders, adapters."""
