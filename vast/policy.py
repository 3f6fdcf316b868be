"""The policy of the supervisor: a strict model of vast/policy.yaml, which explains every key.

Rules over several keys raise `combination`, as in jobs/config/schema.py, so that an error names the file and both keys.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from jobs.config import strict_yaml
from jobs.config.schema import Fraction, NotNegative, Positive, PositiveFloat, Strict, Text, combination, refused
from jobs.config.validate import Layer, validate

DEFAULT = Path(__file__).with_name("policy.yaml")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN = frozenset({"VAST_API_KEY", "CONTAINER_API_KEY", "CONTAINER_ID"})


class Cadence(Strict):
    early_minutes: Annotated[list[PositiveFloat], Field(min_length=1)]
    stable_minutes: PositiveFloat
    alert_minutes: PositiveFloat
    provisioning: PositiveFloat
    urgent: PositiveFloat


class Stall(Strict):
    looks: Annotated[int, Field(ge=2)]  # one look sees no change at all
    beat_age: PositiveFloat
    idle_gpu_percent: Annotated[float, Field(ge=0, le=100)]


class Pause(Strict):
    first: PositiveFloat
    longest: PositiveFloat
    jitter: Fraction


class Retries(Strict):
    cuda_oom: NotNegative = Field(alias="cuda-oom")
    disk_full: NotNegative = Field(alias="disk-full")
    hub_timeout: NotNegative = Field(alias="hub-timeout")
    stale_lock: NotNegative = Field(alias="stale-lock")
    missing_tool: NotNegative = Field(alias="missing-tool")
    hang: NotNegative
    bug: NotNegative
    killed: NotNegative
    stopped: NotNegative
    lost: NotNegative
    restarted: NotNegative
    incomplete: NotNegative

    def of(self, reason: str) -> int:
        """How often the job may be started again after `reason`; 0 for reasons without retries."""
        limit: int = getattr(self, reason.replace("-", "_"), 0)
        return limit


class Caps(Strict):
    dollars: PositiveFloat
    hours: PositiveFloat
    reserve_minutes: PositiveFloat


class Deadlines(Strict):
    search: PositiveFloat
    loading: PositiveFloat
    ssh: PositiveFloat
    stop: PositiveFloat
    collecting: PositiveFloat
    away: PositiveFloat


class Unreachable(Strict):
    looks: Positive
    seconds: PositiveFloat
    replace_after: PositiveFloat


class BurningIn(Strict):
    enabled: bool
    seconds: PositiveFloat
    tries: Positive


class Reconcile(Strict):
    listings: Annotated[int, Field(ge=2)]
    spacing: PositiveFloat
    visible_after: PositiveFloat
    late: PositiveFloat


class Destroy(Strict):
    first_pause: PositiveFloat
    longest_pause: PositiveFloat
    alarm_tries: Positive


class DestroyOn(Strict):
    done: bool
    fail: bool


class Market(Strict):
    max_dollars_per_hour: PositiveFloat
    min_reliability: Fraction
    min_down_mbit: Annotated[float, Field(ge=0)]
    offers_fresh: PositiveFloat
    banned_machines: list[int]
    regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]]
    datacenter: Literal["auto", "always", "never"]


class Bounds(Strict):
    """Limits of the dead-man's switch on the host."""

    renew: Annotated[float, Field(ge=5)]  # more often, renewals would leave no time for other calls over ssh
    silent: PositiveFloat
    grace: PositiveFloat
    slack_minutes: PositiveFloat

    @model_validator(mode="after")
    def _some_renewals_may_fail(self) -> Self:
        if self.silent < 3 * self.renew:
            fact = f"expected at least 3 times renew ({self.renew:g}), found {self.silent:g}"
            raise combination("silent", fact, "or two lost renewals would end a healthy run", also=("renew",))
        return self


def _variable(name: str) -> str:
    if not VARIABLE.fullmatch(name):
        remedy = "name it here, and keep its value in the environment"
        raise refused("expected the name of an environment variable", remedy)
    if name in OWN:
        raise refused(f"{name} is never sent to a host", "remove it")
    return name


def _hook(value: list[str] | str | None) -> list[str] | str | None:
    if value == []:
        raise refused("expected a program and its arguments, or https://..., found an empty list")
    near = isinstance(value, str) and re.match(r"http://(localhost|127\.0\.0\.1)([:/]|$)", value)
    if isinstance(value, str) and not value.startswith("https://") and not near:
        raise refused("expected https://..., or a command as a list of words", "notifications name machines and money")
    return value


Variable = Annotated[str, AfterValidator(_variable)]
Hook = Annotated[list[Text] | Text | None, AfterValidator(_hook)]
Event = Literal["done", "fail", "alert"]


class Hooks(Strict):
    """A command as a list of words, or the address of a webhook; both receive the same JSON."""

    done: Hook
    fail: Hook
    alert: Hook
    seconds: PositiveFloat


class Policy(Strict):
    cadence: Cadence
    stall: Stall
    attempts: Positive
    offers: Positive
    starts: Positive
    pause: Pause
    retries: Retries
    caps: Caps
    deadlines: Deadlines
    burn_in: BurningIn
    unreachable: Unreachable
    reconcile: Reconcile
    confirm_after: PositiveFloat
    absence_spacing: PositiveFloat
    destroy: Destroy
    destroy_on: DestroyOn
    pull_minutes: PositiveFloat
    bandwidth_mbit: PositiveFloat | None
    low_credit_hours: PositiveFloat
    market: Market
    watchdog: Bounds
    secrets: list[Variable]
    registry_login: Variable | None
    hooks: Hooks

    @model_validator(mode="after")
    def _room_for_the_end(self) -> Self:
        reserve = self.caps.reserve_minutes
        if reserve >= 60 * self.caps.hours:
            fact = f"expected less than caps.hours ({self.caps.hours:g}), found {reserve:g} minutes"
            raise combination("caps", fact, "no time would be left for the job")
        return self


def only_datacenters(policy: Policy) -> bool:
    """Whether hosts must be in a data center: their owners can read the secrets that a job is given."""
    choice = policy.market.datacenter
    return choice == "always" or (choice == "auto" and bool(policy.secrets or policy.registry_login))


def load(
    path: Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    over: Mapping[str, Path] | None = None,
) -> Policy:
    """The policy in `path` over the defaults of vast/policy.yaml: a file of a few keys is enough.

    over: more defaults over those, by their names in messages.
    options: values from the command line, by the option's text, such as {"--max-cost 3": {"caps": {"dollars": 3.0}}}.
    Raises ConfigError.
    """
    files = {"vast/policy.yaml": DEFAULT, **(over or {}), **({} if path is None else {str(path): path})}
    layers = [Layer(name, strict_yaml.read(file, name)) for name, file in files.items()]
    layers += [Layer(option, dict(values)) for option, values in (options or {}).items()]
    return validate(Policy, layers)


def text(policy: Policy) -> str:
    """YAML of the whole policy, which `load` reads back: kept beside a run, so that it resumes under the same policy."""
    return strict_yaml.dump(policy.model_dump(mode="json", by_alias=True))
