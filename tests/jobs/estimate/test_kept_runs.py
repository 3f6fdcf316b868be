"""The estimate beside the memory that the kept runs of docs/results took on an H200, as torch had reserved it."""

from __future__ import annotations

from collections import defaultdict

from jobs.estimate.estimate import estimate_on
from jobs.estimate.gpus import gpu_named
from jobs.estimate.memory import CONTEXT_GB
from tests.jobs.estimate.measured import RESET, kept_runs


def test_the_estimate_holds_every_run_and_is_at_most_two_fifths_more_than_the_largest_of_its_kind() -> None:
    """Runs of one kind take more or less by the order in which the widths of their rows come up, which no estimate knows. Older
    runs padded their rows to eight shapes of other widths, or to none. torch counts without its context."""
    kinds: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for run in kept_runs():
        # Those on Gemma had a wrong tokenizer, and so longer examples (docs/log.md, 2026-11-30).
        tokens = run.tokens_per_example if run.job.profile.name == "gemma-270m" else None
        found = estimate_on(run.job, gpu_named("H200"), 1, tokens, run.row_shapes if run.started < RESET else None)
        assert found.peak_gb is not None
        estimated, stage, train = found.peak_gb - CONTEXT_GB, run.job.stage, run.job.stage.train
        assert run.peak_gb <= estimated, (run, estimated)
        about = (stage.suite, stage.order, train.lora, train.objective.kl, run.row_shapes) if train is not None else ()
        kinds[run.job.profile.name, *map(str, about)].append((run.peak_gb, estimated))
    assert len(kinds) == 18 and sum(map(len, kinds.values())) == 115
    for kind, runs in kinds.items():
        peaks, estimates = zip(*runs, strict=True)
        # Gemma's look-ups are too few for a packed line, and how much is scored no estimate knows.
        assert max(estimates) <= (2.4 if kind == ("gemma-270m",) else 1.42) * max(peaks), (kind, runs)
