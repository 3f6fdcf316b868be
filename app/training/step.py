"""One optimiser step: forward and backward of every pass, clipping, the guard against numbers that are not finite, the update.

On a GPU the host does not wait for a step. Clipping and the guard are part of the optimiser's pass over the weights
(app/training/master_weights.py), which changes nothing where a number is not finite, and the host reads loss and norm when
the next step is under way. Optimisers that cannot do that wait for the host before the weights change.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from app.runtime.ranks import Ranks
from app.training import fsdp, optimizers, snapshot
from app.training.cuda_graph import Graphs, Inputs
from app.training.forward import ResponseLoss
from app.training.master_weights import MasterAdamW
from jobs.config.schema import Train


@dataclass(frozen=True)
class Launched:
    """A step that the device was given. tokens: of this process, with and without padding, and those that carry a loss."""

    step: int
    rate: float
    tokens: int
    padded_tokens: int
    response_tokens: int
    _numbers: Tensor
    _ready: torch.cuda.Event | None

    def numbers(self) -> tuple[float, float]:
        """This process's share of the loss, and the norm of the gradients; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        loss, norm = self._numbers.tolist()
        return loss, norm


class OptimizerStep:
    """The work of a step on one process.

    Args:
        model: float32 weights, on the device, its layers not yet compiled.
        require_finite: called with (step, loss, norm) before the weights change; raises. Where the optimiser guards them
            itself (`guarded`), whoever reads the numbers has to call it.
        beat: called between two passes.
        graphs: launch steps as CUDA graphs; None: kernel by kernel.
    """

    def __init__(self, model: Any, train: Train, accelerator: Any, ranks: Ranks, *,
                 require_finite: Callable[[int, float, float], None], beat: Callable[[int], None],
                 graphs: Graphs | None = None) -> None:  # fmt: skip
        self.inner = self.model = model  # without and with the wrappers of DDP and accelerate
        self.train, self.accelerator, self.ranks, self.graphs = train, accelerator, ranks, graphs
        self.require_finite, self.beat = require_finite, beat
        self.device: torch.device = accelerator.device
        self.fsdp = bool(getattr(accelerator, "is_fsdp2", False))
        self.loss_of = ResponseLoss(model, train.objective)
        # DDP would add up in bfloat16, and an adapter's input would be rounded before its dropout.
        half = ranks.world == 1 and train.lora is None and accelerator.mixed_precision == "bf16"
        gpu = self.device.type == "cuda" and not self.fsdp
        self.optimizer = optimizers.make(train, model, gpu=gpu, half=half)
        self.guarded = isinstance(self.optimizer, MasterAdamW)

    def prepare(self) -> None:
        """Hand the model to accelerate: mixed precision, and DDP or FSDP2 around it. Its layers are compiled by now."""
        if self.fsdp:
            self.model, wrapped = self.accelerator.prepare(self.inner, self.optimizer)
            self.inner, self.optimizer = self.model, wrapped.optimizer
            fsdp.seen_as_plain(self.model)
        else:
            self.model = self.accelerator.prepare(self.inner)
        self.loss_of.autocast = self.accelerator.autocast
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def launch(self, step: int, passes: Inputs) -> Launched:
        """Step number `step`, counted from 1, of passes on the host."""
        if not self.inner.training:
            self.model.train()  # a walk through all modules, in which a GPU would wait
        rate = optimizers.learning_rate(self.train, step - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if isinstance(self.optimizer, MasterAdamW):
            self.optimizer.rate.fill_(rate)
        tokens = sum(int((batch["doc"] >= 0).sum()) for batch in passes)
        padded = sum(batch["input_ids"].numel() for batch in passes)
        responses = sum(int(b["counted"].sum()) if "counted" in b else len(b["at"]) for b in passes)
        work = partial(self._work, step)
        if self.graphs is not None:
            numbers = self.graphs(work, passes)
        else:
            numbers = work(send_to_device(passes, self.device, non_blocking=True))
        ready = None
        if numbers.is_cuda:
            numbers = torch.empty(2, pin_memory=True).copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        return Launched(step, rate, tokens, padded, responses, numbers, ready)

    def _work(self, step: int, passes: Inputs) -> Tensor:
        """What the device does: (this process's share of the loss, the gradients' norm)."""
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(passes):
            last = i == len(passes) - 1
            # Gradients that FSDP does not send off at once would be whole on every GPU: what it is there to avoid.
            with nullcontext() if last or self.fsdp else self.accelerator.no_sync(self.model):
                loss += self.forward_backward(batch)
            if not last:
                self.beat(step - 1)
                if isinstance(self.optimizer, MasterAdamW):
                    self.optimizer.add_up()
        norm = self._update(loss) if isinstance(self.optimizer, MasterAdamW) else self._clip_and_update(step, loss)
        return torch.stack([loss, norm])

    def forward_backward(self, batch: dict[str, Tensor]) -> Tensor:
        # Gradients are averaged over processes; step_tokens are those of all of them.
        loss = self.loss_of(self.model, batch).total / batch["step_tokens"] * self.ranks.world
        loss.backward()
        return loss.detach()

    def _update(self, loss: Tensor) -> Tensor:
        assert isinstance(self.optimizer, MasterAdamW)
        norm = self.optimizer.norm()
        self.optimizer.grad_scale = ((norm + 1e-6) / self.train.max_grad_norm).clamp(min=1.0)
        self.optimizer.skip = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _clip_and_update(self, step: int, loss: Tensor) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.train.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of weights that are spread over GPUs
        self.require_finite(step, *torch.stack([loss, norm]).tolist())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    # ---- weights

    def weights(self) -> dict[str, Tensor]:
        """The trained weights in float32, by name; one that two layers share once. Under FSDP this process's shares."""
        masters = getattr(self.optimizer, "masters", {})
        return {name: masters.get(p, p.detach()) for name, p in self.inner.named_parameters() if p.requires_grad}

    def put_weights(self, found: Mapping[str, Tensor]) -> None:
        snapshot.put(found, self.weights())
        if isinstance(self.optimizer, MasterAdamW):
            self.optimizer.refresh()

    def release(self) -> None:
        """The end of training: all weights are float32."""
        if isinstance(self.optimizer, MasterAdamW):
            self.optimizer.release()
