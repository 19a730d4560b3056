"""V2I-DETR: a video teacher distilled into a single-frame lesion detector.

Importing the package before torch decides how torch's threads wait for each other. By default they
spin, and beside one busy process a training step on two cores takes 2.6 times as long as alone;
with few spins 1.5 times, and no longer alone (RESULTS.md). Whoever sets OMP_WAIT_POLICY or
GOMP_SPINCOUNT decides instead.
"""

import os

SPINS = "100"  # of a thread of GNU OpenMP before it sleeps

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
