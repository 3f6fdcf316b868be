"""requirements/*.lock pin what pyproject.toml asks for, and nothing of one machine; those of the image with hashes."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = {
    "base": PROJECT["dependencies"],
    "dev": [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]],
}
EXTRAS = {"docker", "lm_eval", "starlette", "uvicorn"}
IMAGES = ["image-cpu", "image-cuda", "image-tools", "image-track"]


def read(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    lines = read(name).splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize("name", WANTED)
def test_every_dependency_is_pinned_to_a_version_within_its_bounds(name: str) -> None:
    pinned = pins(name)
    wrong = []
    for text in WANTED[name]:
        requirement = Requirement(text)
        found = pinned.get(canonicalize_name(requirement.name))
        if found is None or found not in requirement.specifier:
            wrong.append(f"{text}: pinned {found}; run: make lock")
    assert wrong == []


@pytest.mark.parametrize("name", WANTED)
def test_every_line_is_a_name_and_a_version_without_a_build_or_an_address(name: str) -> None:
    lines = read(name).splitlines()[1:]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_both_locks_agree() -> None:
    assert pins("base").items() <= pins("dev").items()


def test_this_environment_has_the_versions_of_the_lock() -> None:
    """Made by `make setup` or by `uv sync`; the build of a version, such as torch's +cpu, is the machine's."""
    found = {name: version(name).partition("+")[0] for name in pins("dev")}
    assert found == pins("dev")


modules_of_distributions = cache(packages_distributions)


def not_brought(directory: Path) -> list[str]:
    """What the code there imports that base.lock does not bring: .venv may have it, for the tests; the image has not."""
    base = pins("base")
    brought = {module for module, owners in modules_of_distributions().items()
               if any(canonicalize_name(owner) in base for owner in owners)}  # fmt: skip
    known = brought | sys.stdlib_module_names | {"app", "jobs", "vast"} | EXTRAS
    found = []
    for path in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            found += [f"{path.name}:{node.lineno}: {name}" for name in names if name.split(".")[0] not in known]
    return found


@pytest.mark.parametrize("package", ["app", "jobs", "vast"])
def test_the_code_imports_only_what_the_image_has(package: str) -> None:
    assert not_brought(ROOT / package) == []


def test_an_import_of_what_only_the_tests_have_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import numpy\nfrom . import two\ndef p():\n    from scipy.stats import binomtest\n"
    )
    assert not_brought(tmp_path) == ["one.py:4: scipy.stats"]


def test_the_mutation_tool_is_pinned_and_runs_beside_the_packages_of_the_tests() -> None:
    mutmut, dev = pins("mutmut"), pins("dev")
    assert "mutmut" in mutmut and "torch" not in mutmut
    assert {name: mutmut[name] for name in mutmut.keys() & dev.keys()}.items() <= dev.items()


def test_the_oldest_transformers_is_the_lower_bound_and_runs_beside_the_packages_of_the_tests() -> None:
    oldest, dev = pins("oldest"), pins("dev")
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (bound,) = [one for one in bounds if one.startswith("transformers")]
    assert oldest["transformers"].startswith(bound.partition(">=")[2].partition(",")[0])
    assert oldest.items() - dev.items() == oldest.items(), "what dev.lock has already"


def test_what_is_mutated_and_what_tests_it_is_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    named = [*settings["only_mutate"], *settings["pytest_add_cli_args_test_selection"], *settings["also_copy"]]
    assert [path for path in named if not (ROOT / path.partition("::")[0]).exists()] == []


# ---- the image's ----------------------------------------------------------------------------------------------------------


def hashed_pins(text: str) -> dict[str, str]:
    """Package and version of every requirement; fails on a line that is anything else, and on one without a hash."""
    found: dict[str, str] = {}
    for requirement in text.split("\n", 1)[1].replace("\\\n", " ").splitlines():
        first, *hashes = requirement.split()
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.+]*)", first)
        assert match, f"not a pinned package: {requirement}"
        assert hashes, f"{first}: no hash"
        assert [one for one in hashes if not re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one)] == []
        found[canonicalize_name(match[1])] = match[2]
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_every_package_of_an_image_has_a_hash_and_no_address(name: str) -> None:
    assert len(hashed_pins(read(name))) > (40 if name != "image-track" else 4)
    assert [
        word for word in ("://", "--index", "--extra-index", "--find-links", "file:", "@") if word in read(name)
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        "numpy",
        "--no-binary :all:",
        "numpy==2.4.6 --hash=md5:0",
        "numpy>=2 --hash=sha256:" + "0" * 64,
    ],
)
def test_a_requirement_without_version_or_hash_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        hashed_pins(f"# head\n{line}\n")


@pytest.mark.parametrize(("name", "torch"), [("image-cpu", "{}+cpu"), ("image-cuda", "{}")])
def test_an_image_has_every_package_of_the_base_in_the_same_version(name: str, torch: str) -> None:
    base = pins("base")
    base["torch"] = torch.format(base["torch"])
    assert base.items() <= hashed_pins(read(name)).items()


def test_only_the_cuda_image_has_the_cuda_libraries_and_triton() -> None:
    def cuda(name: str) -> list[str]:
        return [package for package in hashed_pins(read(name)) if package.startswith(("nvidia", "cuda", "triton"))]

    assert cuda("image-cpu") == []
    assert {"triton", "nvidia-nccl-cu13", "cuda-bindings"} <= set(cuda("image-cuda"))


OF_S3FS = {"s3fs", "aiobotocore", "aiohappyeyeballs", "aiohttp", "aioitertools", "aiosignal", "attrs", "botocore", "frozenlist",
           "jmespath", "multidict", "propcache", "wrapt", "yarl"}  # fmt: skip
OF_SERVE = {"starlette", "uvicorn"}


def test_beyond_the_base_an_image_has_only_pip_a_way_to_buckets_a_web_server_and_what_torch_needs() -> None:
    more = {name: set(hashed_pins(read(name))) - set(pins("base")) for name in ("image-cpu", "image-cuda")}
    assert more["image-cpu"] == {"pip", "setuptools"} | OF_S3FS | OF_SERVE
    assert {one for one in more["image-cuda"] if not one.startswith(("nvidia", "cuda", "triton"))} == more["image-cpu"]
    assert {
        name: pin for name, pin in hashed_pins(read("image-cpu")).items() if name in OF_S3FS | OF_SERVE
    }.items() <= pins("dev").items()


def test_the_image_with_tensorboard_has_it_beyond_the_image_in_the_version_of_the_trackers() -> None:
    track = hashed_pins(read("image-track"))
    assert "tensorboard" in track and track.items() <= {**pins("dev"), **pins("trackers")}.items()
    assert track.keys() & hashed_pins(read("image-cpu")).keys() == set()
