"""The fingerprints of the shipped stages: runs that are complete stay complete, and runs that ended early can go on."""

from __future__ import annotations

import pytest

from jobs.config.load import resolve

# Profile ci, first 16 digits, each start a run called NAME/run. A change of a shipped stage or of a default changes them, and
# then every complete run of that stage is run anew: say so in CHANGELOG.md.
SHIPPED = {
    "stage1": "259b4ab9ae6b96ff",
    "stage2": "0ee3c15548948ad7",
    "stage3a": "3ee1984b284c7cef",
    "stage3b": "852763ceac71d25a",
    "stage4": "1eff4f65a8b909c4",
    "stage5a": "4c5184fe5431cd89",
    "stage5b": "c9c7ef5b583526c1",
    "nonprefill": "8d8a01bf05bf9ec2",
}


@pytest.mark.parametrize("stage", SHIPPED)
def test_the_fingerprint_of_a_shipped_stage_stays(stage: str) -> None:
    job = resolve(stage, "ci")
    starts = {name: name if name == "base" else f"{name}/run" for name in job.stage.init_names}
    assert job.fingerprint(starts)[:16] == SHIPPED[stage]
