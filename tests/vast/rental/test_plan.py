"""What is asked of the market, whether the caps hold it, and what the machine runs first."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.config.load import resolve
from jobs.errors import ConfigError
from jobs.estimate.estimate import estimate
from jobs.estimate.sizes import USABLE
from tests.vast.fakes.command_line import estimate_of
from vast import policy as policies
from vast.commands.options import JobOptions
from vast.host import watchdog
from vast.ports import Offer, label_text
from vast.rental.onstart import LIMIT, Switch, arguments, onstart
from vast.rental.plan import (
    estimated,
    host_image,
    least_vram,
    query_of,
    require_caps,
    run_id_of,
)

POLICY = policies.load()
SWITCH = Switch("stage5b-20270115-080000", "ab" * 16, 88_000.0, 3600.0, 300.0, 12.0, 0.4125, "https://console.vast.ai")


# ---- the image ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("docker.io/you/prefill:1", "docker.io/you/prefill:1-host"),
        ("registry.example:5000/prefill:v1.2_3", "registry.example:5000/prefill:v1.2_3-host"),
        ("ghcr.io/you/prefill:1-host", "ghcr.io/you/prefill:1-host"),
        (f"ghcr.io/you/prefill@sha256:{'0' * 64}", f"ghcr.io/you/prefill@sha256:{'0' * 64}"),
    ],
)
def test_a_machine_pulls_the_host_tag(image: str, expected: str) -> None:
    assert host_image(image) == expected


@pytest.mark.parametrize(
    "image",
    ["prefill:local", "prefill", "you/prefill:1", "docker.io/you/prefill", "docker.io/You/prefill:1", "docker.io/:1",
     "docker.io/you/prefill:", "docker.io//prefill:1", "docker.io/you/prefill:a b", "docker.io/you/prefill@sha256:12",
     "localhost:5000/prefill:1", "127.0.0.1:5000/prefill:1", "", "-v/x:1", "docker.io/you/prefill:1;rm"],
)  # fmt: skip
def test_a_name_that_no_machine_could_pull_is_refused(image: str) -> None:
    with pytest.raises(ConfigError, match="^--image") as error:
        host_image(image)
    assert error.value.remedy


# ---- the plan ----------------------------------------------------------------------------------------------------------------


def test_options_and_policy_bound_the_search_together() -> None:
    query = query_of(POLICY, gpu="a100_sxm4", max_price=1.5, min_vram_gb=40)
    assert (query.gpu, query.max_dollars_per_hour, query.min_vram_gb) == ("A100 SXM4", 1.5, 40)
    assert query.min_hours == POLICY.caps.hours
    assert query_of(POLICY, max_price=99.0).max_dollars_per_hour == POLICY.market.max_dollars_per_hour
    assert query_of(POLICY, interruptible=True, bid=0.3).max_dollars_per_hour == 0.3


def test_the_command_goes_on_with_what_is_there() -> None:
    words = JobOptions(stage="stage1", profile="ci", limit=4, sets=("a=1", "b=2"), seed=3).command("/runs")
    assert " ".join(words) == "run stage1 --profile ci --continue --limit 4 --seed 3 --set a=1 --set b=2"


def test_a_run_id_fits_into_a_label() -> None:
    first = run_id_of("stage5b", datetime(2027, 1, 15, 8, 0, 0, tzinfo=UTC), "3f9a")
    assert first == "stage5b-20270115-080000-3f9a"
    assert label_text(first, 1.0)


OFFER = Offer(1, 2, "RTX 4090", 1, 24.6, 0.4, None, 0.99, 900.0, 900.0, 100.0, 8)


def test_a_gpu_that_is_in_no_table_has_no_estimate() -> None:
    job = resolve("stage1", "ci")
    assert estimated(estimate, [job], OFFER) is not None
    assert estimated(estimate, [job], replace(OFFER, gpu="NO SUCH GPU")) is None


def test_memory_that_a_job_needs_is_asked_for_as_the_market_counts_it() -> None:
    assert least_vram(estimate_of(1.0, peak_gb=22.56, fits=False)) == pytest.approx(22.56 / USABLE * 1.024, abs=0.05)
    assert least_vram(estimate_of(1.0, peak_gb=22.56, fits=True)) == 0.0
    assert least_vram(estimate_of(1.0)) == least_vram(None) == 0.0


@pytest.mark.parametrize(
    ("dollars", "hours", "price", "estimate", "refused"),
    [
        (20.0, 24.0, 0.4, None, None),
        (20.0, 24.0, 0.4, 20.0, None),
        (20.0, 24.0, 0.4, 24.0, "--max-hours"),
        (8.0, 24.0, 0.4, 20.0, "--max-cost"),
        (0.2, 24.0, 0.4, None, "--max-cost"),
        (0.3, 24.0, 0.4, None, None),
    ],
)
def test_caps_that_cannot_hold_the_run_are_refused(
    dollars: float, hours: float, price: float, estimate: float | None, refused: str | None
) -> None:
    policy = policies.load(None, {"test": {"caps": {"dollars": dollars, "hours": hours}}})
    if refused is None:
        require_caps(policy, price, estimate)
        return
    with pytest.raises(ConfigError, match=f"^{refused}: .*raise it"):
        require_caps(policy, price, estimate)


def test_the_policy_of_a_run_reads_back_the_same(tmp_path: Path) -> None:
    decided = policies.load(None, {"--max-cost 3": {"caps": {"dollars": 3.0}}})
    (tmp_path / "policy.yaml").write_text(policies.text(decided))
    assert policies.load(tmp_path / "policy.yaml") == decided
    with pytest.raises(ConfigError, match=r"--max-cost -3"):
        policies.load(None, {"--max-cost -3": {"caps": {"dollars": -3.0}}})


# ---- onstart -----------------------------------------------------------------------------------------------------------------


def test_the_watchdog_takes_the_arguments_that_onstart_gives() -> None:
    parsed = watchdog._arguments(list(arguments(SWITCH)))
    assert (parsed.run_id, parsed.nonce, parsed.url) == (SWITCH.run_id, SWITCH.nonce, SWITCH.url)
    assert (parsed.hard, parsed.silent, parsed.grace) == (SWITCH.hard, SWITCH.silent, SWITCH.grace)
    assert (parsed.max_dollars, parsed.dollars_per_hour) == (SWITCH.max_dollars, SWITCH.dollars_per_hour)


def test_onstart_is_a_script_that_starts_the_watchdog_and_names_no_key(tmp_path: Path) -> None:
    text = onstart(SWITCH)
    assert len(text.encode()) < LIMIT and "CONTAINER" not in text
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=10)
    assert shlex.join(["/usr/bin/python3", "-m", "vast.host.watchdog", *arguments(SWITCH)]) in text


def test_onstart_quotes_what_it_is_spec() -> None:
    odd = onstart(replace(SWITCH, url="https://host/$(touch gone); echo"))
    assert "'https://host/$(touch gone); echo'" in odd


def test_onstart_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="the service takes 4096"):
        onstart(replace(SWITCH, url="https://" + "x" * LIMIT))
