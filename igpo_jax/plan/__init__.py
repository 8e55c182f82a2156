"""What a run needs on its devices, found by compiling."""
