"""A local web page that shows a model denoise."""
