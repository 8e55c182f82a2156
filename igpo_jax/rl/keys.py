"""Purposes of PRNG keys, so that no two draws of an iteration share a key."""

import enum


class KeyPurpose(enum.IntEnum):
    """Number folded into the key of an iteration or of one of its batches. Changing a number changes results."""

    FIRST_ATTEMPT = 0  # noise of the sampler
    SECOND_ATTEMPT = 1
    HINTS = 2  # chunks, ratios and the choice of chunks
    REPLACEMENTS = 3  # the correct second attempts that are swapped in
    LIKELIHOOD_MASKS = 4  # the tokens that random estimators mask
    PROBE = 5  # sampler noise when measuring the cached sampler's error
    MORE_PROMPTS = 6  # the second and later batches of an iteration
