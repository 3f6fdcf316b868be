"""The trainer and the evaluator: what a prompt that attends in both directions costs, and how far training repairs it."""

import os

# Before torch is imported anywhere. Its threads wait for each other by spinning, for milliseconds: beside other work, or in a
# container with less than all cores, each waits for one that is not running, and everything takes hundreds of times as
# long (docs/log.md). A short spin costs next to nothing where the cores are free.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
