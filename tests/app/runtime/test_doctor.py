"""`prefill doctor`: one line for each thing, and for each that is missing its remedy; without torch and without a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.commands import doctor as command_room
from app.runtime import doctor
from app.runtime.doctor import INFO, QUERY, Machine, checks
from jobs import doctor as words
from jobs.errors import UserError
from tests.app.fakes.command_line import Command

ROOT = Path(__file__).resolve().parents[3]
GPU = "NVIDIA H200, 143771 MiB, {}.54.14"
ENGINE = "29.1.0 runtime=io.containerd.runc.v2 runtime=nvidia "


def machine(
    home: Path, gpu: tuple[int, str] = (127, ""), engine: tuple[int, str] = (0, ENGINE), **environ: str
) -> Machine:
    return Machine(environ, home, lambda argv: {QUERY: gpu, INFO: engine}[argv])


def lines(one: Machine, place: Path, **options: bool) -> Mapping[str, tuple[str, str]]:
    """(verdict, text) by name; keys together."""
    found: dict[str, tuple[str, str]] = {}
    for check in checks(one, place / "runs", place / "cache", **options):
        before = found.get(check.name, ("", ""))[1]
        found[check.name] = (check.verdict, f"{before}{check.text}\n" if check.name == "key" else check.text)
    return found


def torch_of(patch: pytest.MonkeyPatch, place: Path, cuda: str | None) -> None:
    """As if torch were built for this CUDA."""
    (place / "torch").mkdir()
    (place / "torch/__init__.py").touch()
    (place / "torch/version.py").write_text(f"cuda = {cuda!r}\n")
    spec = type("Spec", (), {"origin": str(place / "torch/__init__.py")})
    patch.setattr(doctor, "find_spec", lambda name: spec)


def test_a_machine_that_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_of(monkeypatch, tmp_path, "13.0")
    (tmp_path / ".config/vastai").mkdir(parents=True)
    (tmp_path / ".config/vastai/vast_api_key").write_text("hidden-file-value")
    found = lines(machine(tmp_path, gpu=(0, GPU.format(580)), HF_TOKEN="hf_hidden"), tmp_path)
    assert {verdict for verdict, _ in found.values()} == {"ok"}, found
    assert list(found) == ["python", "packages", "runs", "cache", "hub cache", "kernels", "key", "gpu", "torch and GPU",
                           "engine", "image and GPU"]  # fmt: skip
    assert found["torch and GPU"][1] == "CUDA 13.0, driver 580"
    assert "HF_TOKEN is set\n" in found["key"][1] and "vast_api_key is there" in found["key"][1]
    assert "hidden" not in str(found)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists(), "it only reads"


def test_a_machine_without_a_gpu_lacks_nothing_either(tmp_path: Path) -> None:
    found = lines(machine(tmp_path), tmp_path)
    assert found["gpu"] == ("optional", "none: stages run on the CPU; for an NVIDIA GPU install its driver")
    assert {name for name, (verdict, _) in found.items() if verdict != "ok"} == {
        "gpu",
        "key",
    } and "image and GPU" not in found


@pytest.mark.parametrize(
    ("gpu", "engine", "cuda", "name", "text"),
    [
        ((9, "couldn't communicate with the driver"), (0, ENGINE), "13.0", "gpu", "install NVIDIA's driver 580 or later"),
        ((0, GPU.format(580)), (0, ENGINE), None, "torch and GPU", "is built for the CPU alone, and there is a GPU; install"),
        ((0, GPU.format(525)), (127, ""), "13.0", "torch and GPU", "needs driver 580, and this one is 525; update the driver"),
        ((0, GPU.format(535)), (0, ENGINE), "12.8", "image and GPU", "needs 580; on a data center GPU build VARIANT=compat"),
        ((0, GPU.format(470)), (0, ENGINE), "12.8", "image and GPU", "the image's CUDA 13.0 needs 580; update the driver"),
        ((0, GPU.format(580)), (0, "29.1 "), "13.0", "engine and GPU", "install the NVIDIA container toolkit"),
    ],
)  # fmt: skip
def test_each_lack_of_gpu_and_engine_is_a_line_with_its_remedy(
    gpu: tuple[int, str], engine: tuple[int, str], cuda: str, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    torch_of(monkeypatch, tmp_path, cuda)
    found = lines(machine(tmp_path, gpu, engine), tmp_path)
    assert found[name][0] == "missing" and text in found[name][1], found[name]


@pytest.mark.parametrize(
    ("engine", "text"),
    [((127, ""), "no docker on PATH; stages run without a container; for containers install one"),
     ((1, "cannot connect"), "docker does not answer (cannot connect); stages run without a container; for containers start one")],
)  # fmt: skip
def test_stages_run_without_a_container_engine(engine: tuple[int, str], text: str, tmp_path: Path) -> None:
    assert lines(machine(tmp_path, engine=engine), tmp_path)["engine"] == ("optional", text)


def test_the_image_is_not_asked_for_an_engine(tmp_path: Path) -> None:
    assert (
        lines(machine(tmp_path, engine=(127, ""), PREFILL_IMAGE="sha256:0"), tmp_path)["engine"][1]
        == "this is the image"
    )
    assert "engine" not in lines(machine(tmp_path, engine=(127, "")), tmp_path, engine=False)


def test_packages_disk_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("click", "no-such-package"))
    monkeypatch.setattr(words, "LEAST_DISK", 5e9)
    (tmp_path / "runs").write_text("a file")
    (tmp_path / "cache").write_text("a file")
    found = lines(machine(tmp_path), tmp_path)
    assert found["packages"][0] == "missing" and "has no no-such-package; run: make setup" in found["packages"][1]
    assert found["runs"][0] == "missing" and "cannot be written" in found["runs"][1]
    assert found["cache"][0] == "missing" and "set PREFILL_CACHE to a directory that can" in found["cache"][1]
    with pytest.raises(UserError, match=r"GB are free, and runs need .* or more; make room"):
        words.disk(tmp_path / "other", least=1e18)
    monkeypatch.setattr(doctor, "LEAST_CACHE", 1e18)
    with pytest.raises(UserError, match="less than 1 GB is free"):
        doctor.embedded_cache(tmp_path / "other")


def test_what_torch_for_cuda_needs_is_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "some_torch-1.0.dist-info"
    about.mkdir()
    needs = 'click\nRequires-Dist: no-such-library==9; platform_system == "Linux"\nRequires-Dist: other; extra == "x"'
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some-torch\nVersion: 1.0\nRequires-Dist: {needs}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "PACKAGES", ("some-torch",))
    with pytest.raises(UserError, match="has no no-such-library, which some-torch needs; run: make setup"):
        doctor.packages()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-torch\nVersion: 1.0\nRequires-Dist: click\n")
    assert doctor.packages() == "some-torch 1.0"


def test_a_filled_cache_may_be_read_only_and_its_size_is_shown(tmp_path: Path) -> None:
    for part in ("models", "datasets"):
        (tmp_path / part).mkdir()
    with open(tmp_path / "models/weights", "wb") as file:
        file.truncate(10**8)
    assert doctor.embedded_cache(tmp_path) == f"{tmp_path}: 0.1 GB"


def test_the_command_ends_with_2_where_something_is_missing_and_names_no_value(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "value-0123456789")
    monkeypatch.setattr(command_room, "_run", lambda argv: (9, "no driver"))
    done = command("doctor", "--runs-dir", tmp_path / "runs")
    assert done.code == 2 and "WANDB_API_KEY is set" in done.out and "value-0123456789" not in done.out + done.err
    assert re.search(r"^missing  gpu .*no driver", done.out, re.MULTILINE)
    monkeypatch.setattr(command_room, "_run", lambda argv: (127, ""))
    assert command("doctor", "--no-engine", "--runs-dir", tmp_path / "runs").code == 0


def test_a_program_that_is_not_there_or_fails() -> None:
    assert command_room._run(("no-such-program",)) == (127, "")
    assert command_room._run((sys.executable, "-c", "print('a'); print('b')")) == (0, "a; b")
    assert command_room._run((sys.executable, "-c", "raise SystemExit('no')")) == (1, "no")


def test_the_driver_is_that_of_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"ARG CUDA={doctor.CUDA}\n" in text and f"ARG DRIVER={doctor.DRIVER}\n" in text
    assert f'prefill.compat.driver="{doctor.COMPAT_DRIVER}"' in text


def test_it_works_without_torch() -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers', 'datasets', 'numpy'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "sys.argv = ['app', 'doctor', '--no-engine']\n"
        "from app.__main__ import main\n"
        "sys.exit(main())\n"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode in (0, 2) and done.stdout.startswith("ok       python") and not done.stderr, done


def test_on_a_terminal_a_line_is_broken_between_words_and_in_a_file_it_is_one() -> None:
    text = "in the directory /a/place/whose/name/is/longer/than/the/terminal, which-is-never-broken either, whatever the width of the terminal is"
    line = str(words.Check("cache", "missing", text))
    assert words.wrapped(line) == line
    for width in (60, 80, 120):
        first, *others = words.wrapped(line, width).splitlines()
        assert first.startswith("missing  cache           in the directory") and others
        assert all(other.startswith(" " * 25) and other[25] != " " for other in others)
        assert " ".join([first, *(other.strip() for other in others)]) == line
        assert all(len(one) <= width or len(one.split()) == 1 for one in (first, *others))
