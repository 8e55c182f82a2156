"""Purposes of PRNG keys, so that no two random draws of an iteration share a key."""

import enum


class KeyPurpose(enum.IntEnum):
    """Numbers, one per purpose, folded into the PRNG key of an iteration or of its batch. Changing a number changes results."""

    FIRST_ATTEMPT = 0  # noise of the sampler in the first attempt
    SECOND_ATTEMPT = 1
    HINTS = 2  # chunks, ratios and the choice of chunks
    REPLACEMENTS = 3  # the correct second attempts that are swapped in
    LIKELIHOOD_MASKS = 4  # the tokens that random estimators mask
    PROBE = 5  # sampler noise when measuring the cached sampler's error
    MORE_PROMPTS = 6  # second and later batches of an iteration
