"""Video detectors of the paper's Tables I and II, a file each."""
