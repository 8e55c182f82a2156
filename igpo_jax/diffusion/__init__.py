"""The diffusion process: corruption and SFT loss, the sampler, inpainting of hints."""
