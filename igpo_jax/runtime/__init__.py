"""Runtime: devices, processes, files, signals, statistics; nothing here knows a run."""
