"""Text to verdict."""
