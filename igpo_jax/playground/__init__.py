"""Local web page that shows how a model denoises a completion."""
