"""The state of a training in progress: copied to the host's memory, written in a thread while training goes on, read back.

The copy is what training waits for; the disk is slower by an order of magnitude. A checkpoint counts once everything in it
is on the disk (app/training/checkpoint.py), so that a kill at any moment leaves the one before. Where the host lacks the
memory for a copy, the file is written at once, out of the GPU's. The copies' memory is taken ahead, in a thread.
"""

import os
import pickle
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from app.runtime.progress import waiting
from app.training import checkpoint
from app.training.host_memory import HostMemory, free_memory, size_of
from jobs.errors import CheckpointError

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"
_SPARE = 1.25  # of the memory that a copy takes, that has to be free


class Writer:
    """Writes one checkpoint at a time, in a thread. An error of the thread is raised by the next call of `wait`.

    Its copies are made in `memory`.
    """

    def __init__(self) -> None:
        self.memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._reading: list[Any] = []  # copies of others, until the thread has written them
        self._read_still: list[Any] = []  # of these, what nobody else wants any more

    def reserve(self, *states: Any) -> None:
        """Begin to take memory for a copy of each of `states`, as far as the host has it; that of the last is there first."""
        free, fitting = float(free_memory()), []
        for state in states:
            if (size := size_of(state) * _SPARE) <= free:
                free -= size
                fitting.append(state)
        self.memory.reserve(fitting[::-1])

    def write(self, here: Path, files: Mapping[str, Any], unchanging: Mapping[str, Any], links: Mapping[str, Path],
              done: Callable[[], None]) -> None:  # fmt: skip
        """Write `files` (name -> tensors) into `here`, mark it complete, and call `done`.

        unchanging: files of tensors on the host that nobody changes, so that they need no copy; end with `give_back`.
        links: files that are on the disk already, in another checkpoint.
        """
        self.wait()
        here.mkdir(parents=True, exist_ok=True)
        for name, source in links.items():
            _link(source, here / name)
        self.memory.settle(files)
        copied = self.memory.lacking(files) * _SPARE <= free_memory()
        held = self.memory.copy(files) if copied else files
        whole = {**held, **unchanging}

        def work() -> None:
            # Weights and moments at once, as one core writes slower than a disk; out of the GPU's memory only by this thread.
            with ThreadPoolExecutor(len(whole) or 1) as pool:
                written = (pool.map if copied else map)(_write, [here / name for name in whole], whole.values())
                list(written)  # raises the error of a file
            self.memory.release(held)
            self._reading = []
            checkpoint.mark_complete(here)
            done()

        if not copied:
            return work()
        self._reading = list(unchanging.values())
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="checkpoint")
        self._thread.start()

    def give_back(self, copy: Any) -> None:
        """Take back the memory of a copy that only a checkpoint which is being written may still read."""
        if any(copy is one for one in self._reading):
            self._read_still.append(copy)
        else:
            self.memory.release(copy)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete. Raises the error of its thread."""
        if self._thread is not None:
            with waiting("write the checkpoint"):
                self._thread.join()
            self._thread = None
        self.memory.release(self._read_still)
        self._reading, self._read_still = [], []
        error, self._error = self._error, None
        if error is not None:
            raise error


def best_name(step: int) -> str:
    return f"best-{step}.safetensors"


def best_on_disk(directory: Path, step: int) -> dict[str, Path]:
    """A file with the weights of `step` in a complete checkpoint, by the name that it gets in the next one."""
    for one in reversed(checkpoint.complete_checkpoints(directory)):
        for path in (one / best_name(step), *([one / WEIGHTS] if checkpoint.step_of(one) == step else [])):
            if path.is_file():
                return {best_name(step): path}
    return {}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _write(path: Path, state: Any) -> None:
    if path.suffix == ".safetensors":
        save_file({name: t.contiguous() for name, t in state.items()}, path)
    else:
        torch.save(state, path)


# ---- reading back ----------------------------------------------------------------------------------------------------


def put(found: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `found` into those of the same names, some of which may be views of a model's weights."""
    with torch.no_grad():
        for name, weight in into.items():
            weight.copy_(found[name])


def named_alike(found: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors by the names of the model's trained parameters. A weight that two layers share may have either's name.

    Raises:
        CheckpointError: `path` lacks one of them, or it has another shape.
    """
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in found}
    alike = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            if name not in found and id(weight) not in names:
                raise _unknown(path, f"it has no weight {name}")
            alike[name] = found.get(name, found[names[id(weight)]])
            if weight.shape != alike[name].shape:
                shape, own = list(alike[name].shape), list(weight.shape)
                raise _unknown(path, f"its {name} has the shape {shape}, the model's {own}")
    return alike


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise _unknown(path, "no such file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read: {error}", "start anew with --force") from None


def _unknown(path: Path, fact: str) -> CheckpointError:
    fact = f"{fact}: another version of this program, or another stage, wrote it"
    return CheckpointError(path, fact, "start anew with --force")


def load_optimizer(optimizer: Optimizer, path: Path) -> None:
    """The moments of `path`; rates and options stay the optimiser's own."""
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        # On the host: each moment goes to its weight's device, and none is there twice.
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise _unknown(path, "no such file") from None
    except (ValueError, pickle.UnpicklingError) as error:
        raise _unknown(path, str(error).partition("\n")[0]) from None
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


# ---- random numbers --------------------------------------------------------------------------------------------------


def _rng_file(here: Path, rank: int, world: int) -> Path:
    return here / (f"rng_state_{rank}.pth" if world > 1 else "rng_state.pth")


def save_rng(here: Path, rank: int, world: int) -> None:
    here.mkdir(parents=True, exist_ok=True)
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, _rng_file(here, rank, world))


def load_rng(here: Path, rank: int, world: int) -> bool:
    """Restore the random state of this rank; False if the checkpoint has none, as after a change of the number of processes."""
    path = _rng_file(here, rank, world)
    if not path.is_file():
        return False
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # numpy's beside torch's: of the version before
        return False
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    return True
