"""What surrounds the algorithm: mesh, checkpoints, metrics, report."""
