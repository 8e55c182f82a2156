"""Numbers that give every random draw of an iteration its own PRNG key."""

import enum


class KeyPurpose(enum.IntEnum):
    """Purposes of PRNG keys. The number of a purpose is folded into the key of an iteration or of a batch. Changing a number
    changes the results of a run."""

    FIRST_ATTEMPT = 0  # noise of the sampler in the first attempt
    SECOND_ATTEMPT = 1
    HINTS = 2  # how solutions are cut into hint chunks, and which of these chunks are shown
    REPLACEMENTS = 3  # the correct second attempts that are swapped in
    LIKELIHOOD_MASKS = 4  # the tokens that estimators mask at random
    PROBE = 5  # sampler noise when measuring the cached sampler's error
    MORE_PROMPTS = 6  # second and later batches of an iteration
