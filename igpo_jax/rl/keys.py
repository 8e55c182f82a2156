"""Numbers from which each kind of random draw in an iteration derives its own PRNG key."""

import enum


class KeyPurpose(enum.IntEnum):
    """Purposes of PRNG keys. To derive the key for a purpose, the number of the purpose is folded into the key of an iteration
    or of a batch. If a number is changed, the results of a run change."""

    FIRST_ATTEMPT = 0  # noise of the sampler in the first attempt
    SECOND_ATTEMPT = 1
    HINTS = 2  # how solutions are cut into hint chunks, and which of these chunks are shown
    REPLACEMENTS = 3  # the correct second attempts that are swapped in
    LIKELIHOOD_MASKS = 4  # the tokens that estimators mask at random
    PROBE = 5  # sampler noise when measuring the cached sampler's error
    MORE_PROMPTS = 6  # second and later batches of an iteration
