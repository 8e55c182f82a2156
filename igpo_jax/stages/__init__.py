"""The two training stages of a run: supervised fine-tuning and reinforcement learning."""
