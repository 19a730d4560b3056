"""V2I-DETR: a video teacher distilled into a single-frame lesion detector.

Importing the package before torch limits how long idle threads of torch spin. By default, beside
one busy process, a training step on two cores takes 2.6 times as long as alone; with few spins 1.5
times, and no longer alone (RESULTS.md). OMP_WAIT_POLICY and GOMP_SPINCOUNT take precedence.
"""

import os

SPINS = "100"  # spins of an idle GNU OpenMP thread before it sleeps

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
