"""Model folders and adapters on disk."""
