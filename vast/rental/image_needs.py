"""What an image needs of a machine: the labels prefill.needs.* and prefill.compat.* that docs/containers.md explains. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import ConfigError

NEEDS, COMPAT = "prefill.needs.", "prefill.compat."
_VERSION = re.compile(r"\d{1,3}(\.\d{1,2})?")


@dataclass(frozen=True)
class Needs:
    """An absent label means that the image does not need it."""

    cuda: float = 0.0  # the driver must run this version
    driver: int = 0  # major version
    compute_caps: tuple[int, ...] = ()  # 890 for 8.9
    cpu: str = ""  # amd64
    compat_cuda: float = 0.0  # enough on a data center GPU; 0: the same as `cuda`
    compat_driver: int = 0

    def __str__(self) -> str:
        caps = " ".join(f"{cap / 100:.1f}" for cap in self.compute_caps)
        parts = [f"CUDA {self.cuda:.1f}" if self.cuda else "", f"driver {self.driver}" if self.driver else ""]
        if self.compat_cuda:
            parts.append(f"or CUDA {self.compat_cuda:.1f} and driver {self.compat_driver} with a data center GPU")
        parts.append(f"compute capability {caps}" if caps else "")
        return ", ".join(part for part in (*parts, self.cpu) if part) or "nothing in particular"


def needs_of(image: str, labels: Mapping[str, str]) -> Needs:
    """Raises ConfigError for a label that cannot be read: a machine that does not fit would be paid for."""

    def read(name: str) -> list[str]:
        words = labels.get(name, "").split()
        for word in words:
            if not _VERSION.fullmatch(word):
                fact = f"its label {name} has {word!r}, which is no version"
                raise ConfigError(f"--image {image}", fact, "build and push it anew: make push")
        return words

    def highest(name: str) -> float:
        return max(map(float, read(name)), default=0.0)

    capabilities = tuple(sorted(round(float(word) * 100) for word in read(f"{NEEDS}compute-capabilities")))
    return Needs(
        highest(f"{NEEDS}cuda"),
        int(highest(f"{NEEDS}driver")),
        capabilities,
        labels.get(f"{NEEDS}cpu", "").strip(),
        highest(f"{COMPAT}cuda"),
        int(highest(f"{COMPAT}driver")),
    )
