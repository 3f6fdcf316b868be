"""Checks before renting. Each raises UserError with path, fact and remedy, and changes nothing."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from jobs.config.job import Job
from jobs.config.profile import STORE_REMEDY, store_fault
from jobs.config.terms import require_terms
from jobs.errors import ConfigError, RunStateError, UserError
from jobs.estimate.estimate import Estimate
from jobs.estimate.gpus import gpu_names
from jobs.runs.rundir import command_for, resolve_init
from vast.marketplace.account_key import REMEDY, places
from vast.marketplace.http import DEFAULT_URL
from vast.marketplace.rows import checks, gpu_name
from vast.policy import Policy
from vast.ports import Account, Cloud, Dollars, Offer, OfferQuery
from vast.rental import image_registry
from vast.secrets import Secret

WIDE = 1000  # offers of a search without filters, as many as the market has of most GPUs
STORE, S3_SERVICE = "PREFILL_ARTIFACTS", "AWS_ENDPOINT_URL"
STORE_SECRETS = {"s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "hf": ("HF_TOKEN",)}
TOOLS = ("ssh", "rsync", "ssh-keygen")
UNKNOWN_NEEDS = "not known: the registry does not show the image's labels"
UNSEEN = "nothing is rented, since it could not be watched; try again, or update this program"


class MarketError(UserError):
    """The market cannot be used, or has no fitting offer."""


def tools(which: Callable[[str], str | None]) -> None:
    missing = [name for name in TOOLS if which(name) is None]
    if missing:
        raise ConfigError("PATH", f"no {', no '.join(missing)}", "install openssh-client and rsync")


def starting_runs(runs_dir: Path, job: Job) -> tuple[str, ...]:
    """The local runs that the stage starts from; they are sent to the host. Raises RunStateError if one is missing."""
    found = sorted({run for run in resolve_init(runs_dir, job).values() if run != "base"})
    for run in found:
        if not (runs_dir / run / "final").is_dir():
            fact = "is gone, and the stage starts from it"
            remedy = f"run: {command_for(runs_dir, job, run.partition('/')[0])} FORCE=1"
            raise RunStateError(runs_dir / run / "final", fact, remedy)
    return tuple(found)


def require_no_paths(job: Job) -> None:
    """Raises ConfigError for a model or data in a local directory: a rented host has only the image and the sent runs."""
    kept = ["artifacts"] if (job.profile.artifacts or "").startswith("file:") else []
    for where in [*_paths(job.profile.model_dump(mode="json")), *kept]:
        fact = "is a path of this machine, which a rented one does not have"
        raise ConfigError(f"profile {job.profile.name}: {where}", fact, "use the hub, or what is in the image")


def _paths(part: object, prefix: str = "") -> list[str]:
    """Keys of a profile whose source is a path."""
    if isinstance(part, list):
        return [at for index, value in enumerate(part) for at in _paths(value, f"{prefix}[{index}]")]
    if not isinstance(part, Mapping):
        return []
    found = [prefix] if part.get("source") in ("path", "gguf") else []
    return found + [at for key, value in part.items() for at in _paths(value, f"{prefix}.{key}".lstrip("."))]


def secrets(names: list[str], environ: Mapping[str, str], where: str = "policy: secrets") -> dict[str, Secret]:
    """The values of the variables named in the policy. Raises ConfigError for one that is unset or not one line of text."""
    found = {}
    for name in names:
        if not environ.get(name):
            remedy = f"set it, or take {name} out of the policy"
            raise ConfigError(where, f"${name} is not set in this environment", remedy)
        if not environ[name].isprintable():
            raise ConfigError(where, f"${name} is more than one line of text", "correct it")
        found[name] = Secret(environ[name])
    return found


def artifacts(job: Job, policy: Policy, environ: Mapping[str, str]) -> str | None:
    """The store that the machine will upload to; None: none.

    Raises ConfigError if its credentials are not sent there: uploads would fail one by one, and only a lost machine would
    show that nothing is in the store.
    """
    where, address = f"profile {job.profile.name}: artifacts", job.profile.artifacts
    if address is None and STORE in policy.secrets:
        where, address = f"${STORE}", environ.get(STORE, "")
        if fault := store_fault(address) or ("is a path of this machine" if address.startswith("file:") else None):
            raise ConfigError(where, fault, STORE_REMEDY)
    if address is None:
        return None
    needed = STORE_SECRETS.get(address.partition(":")[0], ())
    if address.startswith("s3:") and environ.get(S3_SERVICE):
        needed = (*needed, S3_SERVICE)
    if lacking := [name for name in needed if name not in policy.secrets]:
        fact = f"the machine gets no {', no '.join(lacking)}, and uploads to {address} need it"
        raise ConfigError(where, fact, f"add it to the policy: secrets: [{', '.join([*policy.secrets, *lacking])}]")
    return address


def terms(job: Job, policy: Policy, environ: Mapping[str, str]) -> None:
    """Raises ConfigError where the terms of the job's model are not accepted, here and on the machine."""
    model = job.profile.model
    accepted = require_terms(model.name, environ) if model.source == "embedded" else None
    if accepted is not None and accepted.variable not in policy.secrets:
        fact = f"the machine gets no {accepted.variable}, by which it accepts {accepted.text}"
        remedy = f"add it to the policy: secrets: [{', '.join([*policy.secrets, accepted.variable])}]"
        raise ConfigError(f"profile {job.profile.name}", fact, remedy)


def registry_login(policy: Policy, environ: Mapping[str, str]) -> Secret | None:
    if policy.registry_login is None:
        return None
    login = secrets([policy.registry_login], environ, "policy: registry_login")[policy.registry_login]
    if "-u" not in login.reveal() or "-p" not in login.reveal():
        fact = f'${policy.registry_login} is no login: expected "-u NAME -p PASSWORD HOST"'
        raise ConfigError("policy: registry_login", fact, "correct it")
    return login


def image(found: image_registry.Found, name: str, has_login: bool) -> None:
    """Raises ConfigError if a rented machine cannot pull the image. An unknown answer is no reason to refuse."""
    where = f"--image {name}"
    if found == "absent":
        remedy = "push it: make push IMAGE=...; it pushes the -host tag too"
        raise ConfigError(where, "its registry has no such image", remedy)
    if found == "denied" and has_login:
        raise ConfigError(where, "its registry refuses the login", "correct the variable that registry_login names")
    if found == "denied":
        fact = "its registry wants a login for it, or does not have it"
        raise ConfigError(where, fact, "push it, or name the login in the policy: registry_login")


def key_source(environ: Mapping[str, str], home: Path) -> str:
    if environ.get("VAST_API_KEY"):
        return "$VAST_API_KEY"
    return next((str(path) for path in places(environ, home) if path.is_file()), "Vast.ai")


def account(cloud: Cloud, environ: Mapping[str, str], home: Path) -> Account:
    """The account. Raises MarketError that distinguishes a refused key from a missing answer."""
    found = cloud.account()
    if found is not None:
        return found
    trouble = trouble_of(cloud)
    url = environ.get("VAST_URL") or DEFAULT_URL
    if "the key is refused" in trouble:
        raise MarketError(key_source(environ, home), f"the key is refused by {url}", REMEDY)
    raise MarketError(url, f"the account cannot be seen: {trouble}", "check the network and VAST_URL, and try again")


def host_url(environ: Mapping[str, str]) -> str:
    """The API's address for the dead-man's switch: a rented machine does not reach a private VAST_URL.

    VAST_HOST_URL is the address as machines see it. Without it a private VAST_URL counts as a way that only this machine
    has, such as a proxy, and the switch takes the service's own address.
    """
    own, given = environ.get("VAST_HOST_URL"), environ.get("VAST_URL")
    if own:
        return own
    return given if given and not _is_private(urlsplit(given).hostname or "") else DEFAULT_URL


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan"))


def require_listing(cloud: Cloud) -> None:
    """Raises MarketError unless machines can be listed and shown: an unseen machine is not ended before a cap."""
    listed = cloud.instances()
    if listed is None:
        raise MarketError("Vast.ai", f"the machines cannot be listed: {trouble_of(cloud)}", UNSEEN)
    shown = cloud.instance(listed[0].id if listed else 1)
    if shown is None and (listed or "HTTP 410" in trouble_of(cloud)):  # 1 is not ours: any other refusal is right
        raise MarketError("Vast.ai", f"a machine cannot be shown: {trouble_of(cloud)}", UNSEEN)


def skew_of(cloud: Cloud) -> float:
    """Seconds by which the service's clock is ahead of this machine's; 0 where no answer had a date."""
    return float(getattr(cloud, "skew", None) or 0.0)


def trouble_of(cloud: Cloud) -> str:
    return str(getattr(cloud, "trouble", "")) or "no answer"


def require_credit(found: Account, price: Dollars, policy: Policy) -> None:
    least = price * 2 * policy.caps.reserve_minutes / 60
    if found.credit is not None and found.credit < least:
        fact = f"${found.credit:.2f} of credit, and the cheapest machine that fits costs ${price:.2f} per hour"
        raise MarketError("Vast.ai", fact, "add credit")


def offers(cloud: Cloud, query: OfferQuery, price_option: str = "--max-price") -> tuple[Offer, ...]:
    """Offers, cheapest first. Raises MarketError if there is none, naming the bounds of the search.

    price_option: what bounds the price on the command line.
    """
    found = cloud.search(query)
    if found is None:
        raise MarketError("Vast.ai", f"the market cannot be searched: {trouble_of(cloud)}", "try again")
    if not found:
        remedy = _what_is_in_the_way(cloud, query, price_option)
        left, wanted = filters_left(cloud, query), ", ".join(name for name, _ in checks(query))
        raise MarketError("Vast.ai", f"no offer for {wanted}", remedy + (f"; offers: {left}" if left else ""))
    return found


def filters_left(cloud: Cloud, query: OfferQuery) -> str:
    """How many offers each filter leaves, one after the other, where it leaves fewer. Empty if the market did not answer."""
    wide = OfferQuery(query.gpu, query.gpus, disk_gb=query.disk_gb, interruptible=query.interruptible, limit=WIDE)
    left = cloud.search(wide)
    if left is None:
        return ""
    parts = [f"{len(left)} with {query.gpus} x {query.gpu or 'any GPU'}"]
    for name, holds in checks(query)[1:]:
        before, left = len(left), tuple(filter(holds, left))
        if len(left) < before:
            parts.append(f"{len(left)} with {name}")
    return ", ".join(parts)


def require_memory(estimate: Estimate | None, offer: Offer) -> None:
    """Raises ConfigError if the job does not fit into the machine's GPUs."""
    if estimate is not None and estimate.fits is False:
        machine = f"{offer.gpus} x {offer.gpu} with {offer.vram_gb:g} GB"
        fact = f"{machine}, and the stage needs {estimate.peak_gb:g} GB a GPU"
        raise ConfigError("--gpu", fact, estimate.remedy or "take a larger one")


def _what_is_in_the_way(cloud: Cloud, query: OfferQuery, price_option: str) -> str:
    """Searches once more without the GPU's name, or without the price bound, to name it if it excludes every offer."""
    if query.gpu is not None and query.gpu not in (known := set(map(gpu_name, gpu_names()))):
        others = cloud.search(replace(query, gpu=None, max_dollars_per_hour=None))
        known |= {gpu_name(one.gpu) for one in others or ()}
        like = sorted(name.replace(" ", "_") for name in known if query.gpu in name)
        if query.gpu not in known:
            return f"the market has no GPU of that name; use --gpu {' or '.join(like) or 'as python -m vast offers shows it'}"
    dearer = cloud.search(replace(query, max_dollars_per_hour=None))
    if dearer:
        first = dearer[0]
        price = first.min_bid if query.interruptible and first.min_bid is not None else first.dollars_per_hour
        raised = f"raise {price_option} and market.max_dollars_per_hour"
        if query.interruptible:
            raised = f"raise --bid to {price:.2f} or more, within {price_option} and market.max_dollars_per_hour"
        return f"the cheapest above that price is a {first.gpu} at ${price:.2f}: {raised}"
    less = "ask for less: --gpu, --min-vram, --max-hours, or market in the policy"
    return f"{less}; or rent elsewhere, by SkyPilot or dstack: python -m jobs.submit --help"
