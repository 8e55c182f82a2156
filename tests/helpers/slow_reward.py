"""A reward function that is slow to import and to warm up, as one that needs math-verify is on a busy machine."""

import time

time.sleep(1.2)
loaded = False


def warm_up():
    global loaded
    time.sleep(1.2)
    loaded = True


def reward(problem, text):
    if not loaded or text == "hang":
        time.sleep(1000)
    return 1.0
