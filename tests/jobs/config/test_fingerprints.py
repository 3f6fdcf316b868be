"""The fingerprints of the shipped stages: runs that are complete stay complete, and runs that ended early can go on."""

from __future__ import annotations

import pytest

from jobs.config.load import resolve

# Profile ci, first 16 digits, each start a run called NAME/run. A change of a shipped stage or of a default changes them, and
# then every complete run of that stage is run anew: say so in CHANGELOG.md.
SHIPPED = {
    "stage1": "28937cbf2a635ba4",
    "stage2": "21934a11ce60fec3",
    "stage3a": "3ee1984b284c7cef",
    "stage3b": "852763ceac71d25a",
    "stage4": "c2f078ceb46f7d17",
    "stage5a": "ea0fda1800d95838",
    "stage5b": "f04dfadac497189c",
    "nonprefill": "76d77aedd7ef6432",
}


@pytest.mark.parametrize("stage", SHIPPED)
def test_the_fingerprint_of_a_shipped_stage_stays(stage: str) -> None:
    job = resolve(stage, "ci")
    starts = {name: name if name == "base" else f"{name}/run" for name in job.stage.init_names}
    assert job.fingerprint(starts)[:16] == SHIPPED[stage]
