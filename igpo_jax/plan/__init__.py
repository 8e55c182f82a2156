"""Memory and time estimates of a run, by compiling its programs."""
