"""Reading and writing of network weights: Hugging Face folders, model folders and adapters."""
