"""What an image needs of a machine: the labels prefill.needs.* and prefill.compat.* that docs/containers.md explains. Pure."""

import re
from collections.abc import Mapping

from jobs.errors import ConfigError

NEEDS, COMPAT = "prefill.needs.", "prefill.compat."
_VERSION = re.compile(r"\d{1,3}(\.\d{1,2})?")


class Needs:
    """By the names of `OfferQuery`. An absent label means that the image does not need it."""

    def __init__(self, image: str, labels: Mapping[str, str]) -> None:
        """Raises ConfigError for a label that cannot be read: a machine that does not fit would be paid for."""

        def read(name: str) -> list[float]:
            words = labels.get(name, "").split()
            if odd := [word for word in words if not _VERSION.fullmatch(word)]:
                fact = f"its label {name} has {odd[0]!r}, which is no version"
                raise ConfigError(f"--image {image}", fact, "build and push it anew: make push")
            return sorted(map(float, words)) or [0.0]

        self.min_cuda = read(f"{NEEDS}cuda")[-1]  # the driver must run this version
        self.min_driver = int(read(f"{NEEDS}driver")[-1])  # major version
        self.compute_caps = tuple(round(cap * 100) for cap in read(f"{NEEDS}compute-capabilities") if cap)
        self.cpu_arch = labels.get(f"{NEEDS}cpu", "").strip()  # amd64
        self.compat_cuda = read(f"{COMPAT}cuda")[-1]  # enough on a data center GPU; 0: the same as `min_cuda`
        self.compat_driver = int(read(f"{COMPAT}driver")[-1])

    def __str__(self) -> str:
        caps = " ".join(f"{cap / 100:.1f}" for cap in self.compute_caps)
        compat = f"or CUDA {self.compat_cuda:.1f} and driver {self.compat_driver} with a data center GPU"
        known = {f"CUDA {self.min_cuda:.1f}": self.min_cuda, f"driver {self.min_driver}": self.min_driver,
                 compat: self.compat_cuda, f"compute capability {caps}": caps, self.cpu_arch: self.cpu_arch}  # fmt: skip
        return ", ".join(part for part, is_set in known.items() if is_set) or "nothing in particular"
