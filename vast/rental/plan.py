"""The parts of a Plan: the image, the search for a machine, the command, the estimate, the check of the caps. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from jobs.config.job import Job
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate
from jobs.estimate.sizes import USABLE
from vast.marketplace.rows import gpu_name, loading_hours
from vast.policy import Policy, only_datacenters
from vast.ports import Dollars, Offer, OfferQuery, Seconds
from vast.rental.image_needs import Needs

HOUR: Seconds = 3600.0
MARKET_GB = 1.024  # in 2**30 bytes: the market counts 1000 MiB as one
HOST_TAG = "-host"  # see docs/containers.md: the image whose user is root, for a host of the ssh kind
DISK_GB = 60.0  # the image, a model of 3B parameters, a few checkpoints
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"{_PART}(?:/{_PART})*(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?")  # after the registry; the tag
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REGISTRY = re.compile(r"(?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]+(?::\d{1,5})?|[A-Za-z0-9-]+:\d{1,5}")
INPUTS = ".inputs"  # on the host, below the runs directory: files sent before the start


# ---- the image ----------------------------------------------------------------------------------------------------------


def host_image(image: str) -> str:
    """The image that a rented machine pulls: the -host tag of `image`; a digest is kept as it is. Raises ConfigError."""
    where = f"--image {image}"
    name, at, digest = image.partition("@")
    head, slash, rest = name.partition("/")
    if not slash or not REGISTRY.fullmatch(head):
        fact = "has no registry, and a rented machine cannot pull an image of this one" if not slash else (
            f"expected a registry's host before the first slash, found {head!r}")  # fmt: skip
        raise ConfigError(where, fact, "push it: make push IMAGE=docker.io/you/prefill:1; then name that")
    if head.startswith(("localhost:", "127.")):
        fact = "is in a registry of this machine, which a rented one cannot reach"
        raise ConfigError(where, fact, "push it elsewhere")
    match = NAME.fullmatch(rest)
    if match is None:
        raise ConfigError(where, "is no name of an image", "expected registry/name:tag")
    if at:
        if not DIGEST.fullmatch(digest):
            raise ConfigError(where, "its digest is none", "expected @sha256: and 64 hexadecimal digits")
        return image
    if not match[1]:
        remedy = "name one, so that each machine of the run gets the same: registry/name:tag"
        raise ConfigError(where, "has no tag", remedy)
    return name if name.endswith(HOST_TAG) else name + HOST_TAG


# ---- the estimate ---------------------------------------------------------------------------------------------------------


Estimator = Callable[[Job, str, int], Estimate]


def estimated(estimator: Estimator, jobs: Sequence[Job], offer: Offer) -> Estimate | None:
    """The estimate for the jobs on that machine, one after the other: of the one that needs most memory, with the hours of all.

    None for an unknown GPU, which must not end a command.
    """
    try:
        found = [estimator(job, offer.gpu, offer.gpus) for job in jobs]
    except ConfigError:
        return None
    hours = [one.hours for one in found if one.hours is not None]
    worst = max(found, key=lambda one: (one.fits is False, one.peak_gb or 0.0))
    return replace(worst, hours=sum(hours) if len(hours) == len(found) else None)


def hours_of(found: Estimate | None) -> float | None:
    return None if found is None else found.hours


def least_vram(found: Estimate | None) -> float:
    """Memory the job needs on a GPU, in the market's GB; 0 if the estimate has no number."""
    if found is None or found.fits is not False or found.peak_gb is None:
        return 0.0
    return round(found.peak_gb / USABLE * MARKET_GB, 1)


# ---- the plan ---------------------------------------------------------------------------------------------------------------


def query_of(policy: Policy, *, gpu: str | None = None, max_price: Dollars | None = None, bid: Dollars | None = None,
             **bounds: Any) -> OfferQuery:  # fmt: skip
    """bounds: of OfferQuery, from the command line. The contract must last for as long as the run may."""
    market = policy.market
    limits = [price for price in (max_price, bid, market.max_dollars_per_hour) if price is not None]
    return OfferQuery(
        gpu=None if gpu is None else gpu_name(gpu),
        max_dollars_per_hour=min(limits),
        min_reliability=market.min_reliability,
        min_down_mbit=market.min_down_mbit,
        min_hours=policy.caps.hours,
        regions=tuple(market.regions),
        datacenter=only_datacenters(policy),
        banned_machines=frozenset(market.banned_machines),
        **bounds,
    )


def for_image(query: OfferQuery, needs: Needs, gb: float, policy: Policy) -> OfferQuery:
    """`query` for machines that can run the image, and load it in time. gb: 0 if not known."""
    in_time = 1.5 * gb * 8000 / policy.deadlines.loading
    down_mbit = max(query.min_down_mbit, in_time)
    return replace(query, **vars(needs), min_down_mbit=down_mbit, down_gb=gb)


def run_id_of(stage: str, now: datetime, random: str) -> str:
    """`random`: two runs of one account with the same name would adopt each other's machines."""
    return f"{stage}-{now:%Y%m%d-%H%M%S}-{random}"


# ---- the caps ----------------------------------------------------------------------------------------------------------------


def overhead_hours(policy: Policy, offer: Offer | None = None, image_gb: float = 0.0) -> float:
    """Hours for loading the image and for the end: the caps must cover them beside the work.

    Without an image's size, half of the time that loading may take.
    """
    loading = policy.deadlines.loading / 2 / HOUR
    if offer is not None and image_gb:
        loading = loading_hours(offer, image_gb)
    return loading + policy.caps.reserve_minutes / 60


def require_caps(policy: Policy, price: Dollars, hours: float | None, *, overhead: float | None = None,
                 traffic: Dollars = 0.0) -> None:  # fmt: skip
    """Raises ConfigError if the caps do not cover the cheapest machine for the hours needed, and its traffic."""
    caps = policy.caps
    overhead = overhead_hours(policy) if overhead is None else overhead
    least = price * 2 * caps.reserve_minutes / 60
    if least >= caps.dollars:
        kept = 2 * caps.reserve_minutes
        fact = f"${price:.2f} per hour uses up ${caps.dollars:.2f} within the {kept:g} minutes kept for the end"
        raise ConfigError("--max-cost", fact, f"raise it above {least:.2f}, or take a cheaper machine")
    if hours is None:
        return
    needed = hours + overhead
    fact = f"the estimate is {hours:.1f} h, with loading and the end {needed:.1f} h"
    if needed > caps.hours:
        raise ConfigError("--max-hours", f"{fact}, and the cap {caps.hours:g} h", f"raise it to {needed:.1f} or more")
    total = needed * price + traffic
    if total > caps.dollars:
        fact = f"{fact}: ${total:.2f} at ${price:.2f} per hour with traffic, and the cap is ${caps.dollars:.2f}"
        raise ConfigError("--max-cost", fact, f"raise it to {total:.2f} or more")
