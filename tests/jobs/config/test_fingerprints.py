"""The fingerprints of the shipped stages: runs that are complete stay complete, and runs that ended early can go on."""

from __future__ import annotations

import pytest

from jobs.config.load import resolve

# Profile ci, first 16 digits, each start a run called NAME/run. A change of a shipped stage or of a default changes them, and
# then every complete run of that stage is run anew: say so in CHANGELOG.md.
SHIPPED = {
    "stage1": "28937cbf2a635ba4",
    "stage2": "21934a11ce60fec3",
    "stage3a": "4f8ab97d40e6a0d0",
    "stage3b": "9f52211f5effa3ab",
    "stage4": "c2f078ceb46f7d17",
    "stage5a": "fc6ca55ea0ee81f8",
    "stage5b": "344ddfcd2352fa1d",
    "nonprefill": "76d77aedd7ef6432",
}


@pytest.mark.parametrize("stage", SHIPPED)
def test_the_fingerprint_of_a_shipped_stage_stays(stage: str) -> None:
    job = resolve(stage, "ci")
    starts = {name: name if name == "base" else f"{name}/run" for name in job.stage.init_names}
    assert job.fingerprint(starts)[:16] == SHIPPED[stage]
