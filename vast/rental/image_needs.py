"""What an image needs of a machine: the labels prefill.needs.* that docs/containers.md explains. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import ConfigError

PREFIX = "prefill.needs."
_VERSION = re.compile(r"\d{1,3}(\.\d{1,2})?")


@dataclass(frozen=True)
class Needs:
    """A label that is absent is a need that does not exist."""

    cuda: float = 0.0  # the driver must run this version
    driver: int = 0  # major version
    compute_caps: tuple[int, ...] = ()  # 890 for 8.9
    cpu: str = ""  # amd64

    def __str__(self) -> str:
        caps = " ".join(f"{cap / 100:.1f}" for cap in self.compute_caps)
        parts = [f"CUDA {self.cuda:.1f}" if self.cuda else "", f"driver {self.driver}" if self.driver else ""]
        parts.append(f"compute capability {caps}" if caps else "")
        return ", ".join(part for part in (*parts, self.cpu) if part) or "nothing in particular"


def needs_of(image: str, labels: Mapping[str, str]) -> Needs:
    """Raises ConfigError for a label that cannot be read: a machine that does not fit would be paid for."""

    def read(name: str) -> list[str]:
        words = labels.get(PREFIX + name, "").split()
        for word in words:
            if not _VERSION.fullmatch(word):
                fact = f"its label {PREFIX}{name} has {word!r}, which is no version"
                raise ConfigError(f"--image {image}", fact, "build and push it anew: make push")
        return words

    def highest(name: str) -> float:
        return max(map(float, read(name)), default=0.0)

    capabilities = tuple(sorted(round(float(word) * 100) for word in read("compute-capabilities")))
    return Needs(highest("cuda"), int(highest("driver")), capabilities, labels.get(PREFIX + "cpu", "").strip())
