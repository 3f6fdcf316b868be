"""AdamW in one pass over the float32 weights; a model's matmuls may read a bfloat16 copy of them.

Under autocast each matmul casts its float32 weight to bfloat16, forward and backward, and the gradient back: 10 ms of a step
of a 3B model on an H200. Here a linear layer holds the bfloat16 weight itself, the optimiser holds the float32 one (the master
weight of mixed-precision training, arXiv 1710.03740) and writes both. The numbers are those of autocast: the matmul and its
gradient were bfloat16 there too. Gradients of several passes are added up in float32.

The pass reads each gradient once and does not write it back: it scales it (clipping) and leaves everything as it was where a
number is not finite, as torch's fused AdamW does for torch.amp.GradScaler, with 28 bytes a parameter in place of 32.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

HALF = torch.bfloat16


def linear_weights(model: Any) -> list[nn.Parameter]:
    """The trained weights of linear layers that only their own matmul reads."""
    inside: list[Any] = [module.weight for module in model.modules() if type(module) is nn.Linear]
    elsewhere = [
        p for module in model.modules() if type(module) is not nn.Linear for p in module.parameters(recurse=False)
    ]
    head = model.get_output_embeddings()
    read = {id(p) for p in (*elsewhere, *([] if head is None else head.parameters()))}
    return [p for p in inside if id(p) not in read and p.requires_grad]


class MasterAdamW(Optimizer):
    """AdamW (arXiv 1711.05101) of float32 weights. Its state is that of torch.optim.AdamW.

    halved: parameters that become bfloat16. `grad_scale`, what gradients are divided by, and `skip`, whether the step changes
    nothing, are tensors on the device, so that the host does not wait for them.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, halved: Iterable[nn.Parameter] = ()) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})
        weights = [p for group in self.param_groups for p in group["params"]]
        device = weights[0].device
        self.rate = torch.full((), lr, device=device)
        self.steps = torch.zeros((), device=device)  # that changed something
        self.grad_scale = torch.ones((), device=device)
        self.skip = torch.zeros((), device=device, dtype=torch.bool)
        self.masters: dict[nn.Parameter, Tensor] = {}
        self._sums: dict[nn.Parameter, Tensor] = {}
        for p in weights:
            self.state[p] = {"step": self.steps, "exp_avg": torch.zeros_like(p.detach()),
                             "exp_avg_sq": torch.zeros_like(p.detach())}  # fmt: skip
        for p in halved:
            self.masters[p] = p.data
            p.data = p.data.to(HALF)

    # ---- gradients

    def add_up(self) -> None:
        """Between two passes of a step: keep the gradients so far in float32."""
        for p in self.masters:
            if p.grad is not None:
                held = self._sums.get(p)
                self._sums[p] = p.grad.float() if held is None else held.add_(p.grad)
                p.grad = None

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """The gradients of the whole step: those of one pass in the weight's type, the sum of several passes in float32."""
        if self._sums:
            self.add_up()
        return {p: self._sums.get(p, p.grad) for group in self.param_groups for p in group["params"]
                if p.grad is not None or p in self._sums}  # fmt: skip

    def norm(self) -> Tensor:
        """L2 norm of all gradients, in float32."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for gradient in self.gradients().values():
            by_type.setdefault(gradient.dtype, []).append(gradient)
        norms = [norm for some in by_type.values() for norm in torch._foreach_norm(some, 2.0, torch.float32)]
        return torch.linalg.vector_norm(torch.stack(norms))

    # ---- the step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        update: Any = _compiled() if self.steps.is_cuda else _adamw
        gradients = self.gradients()
        self.steps += (~self.skip).to(self.steps.dtype)
        for group in self.param_groups:
            first, second = group["betas"]
            # float64: of 1 - 0.999 ** 1 float32 keeps four digits.
            corrections = [(1.0 - beta ** self.steps.double()).float() for beta in (first, second)]
            kept = 1.0 - self.rate * group["weight_decay"]
            for p in group["params"]:
                if p in gradients:
                    state, master = self.state[p], self.masters.get(p)
                    update(_flat(p.data if master is None else master), _flat(state["exp_avg"]), _flat(state["exp_avg_sq"]),
                           _flat(gradients[p]), None if master is None else _flat(p.data), self.rate, kept, self.grad_scale,
                           self.skip, *corrections, first, second, group["eps"])  # fmt: skip

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=True)
        self._sums.clear()

    # ---- weights and state from elsewhere

    def refresh(self) -> None:
        """Make the bfloat16 weights anew, after the float32 ones were changed."""
        for p, master in self.masters.items():
            p.data.copy_(master)

    def release(self) -> None:
        """The end: all weights are float32 again."""
        for p, master in self.masters.items():
            p.data = master
        self.masters = {}

    def state_dict(self) -> dict[str, Any]:
        """The state as torch.optim.AdamW has it: each weight has its own count of steps, which torch changes in place."""
        found = super().state_dict()
        state = {i: {**one, "step": one["step"].clone()} for i, one in found["state"].items()}
        return {**found, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moments stay float32, whatever the weight is."""
        weights = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        if len(weights) != len(numbers):
            raise ValueError(f"the state of {len(numbers)} parameters for {len(weights)}")
        for p, i in zip(weights, numbers, strict=True):
            if (theirs := state_dict["state"].get(i)) is not None:
                if (found := list(theirs["exp_avg"].shape)) != list(p.shape):
                    raise ValueError(f"moments of shape {found} for a weight of {list(p.shape)}")
                self.steps.copy_(theirs["step"])
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[p][name].copy_(theirs[name])


def _flat(tensor: Tensor) -> Tensor:
    """The tensor as lines of 64 numbers, their count left open: one compiled kernel serves all sizes, and reads and writes 16
    bytes at a time, since it knows that 16 divides a line."""
    lines = tensor.view(-1, 64) if tensor.numel() % 64 == 0 else tensor.view(-1, 1)
    torch._dynamo.maybe_mark_dynamic(lines, 0)
    return lines


def _adamw(weight: Tensor, first: Tensor, second: Tensor, gradient: Tensor, half: Tensor | None, rate: Tensor, kept: Tensor,
           scale: Tensor, skip: Tensor, correction1: Tensor, correction2: Tensor, beta1: float, beta2: float,
           eps: float) -> None:  # fmt: skip
    """In place: the weight, its moments, its bfloat16 copy."""
    g = gradient.float() / scale
    m = first * beta1 + g * (1.0 - beta1)
    v = second * beta2 + g * g * (1.0 - beta2)
    moved = weight * kept - (rate / correction1) * m / (v.sqrt() / correction2.sqrt() + eps)
    moved = torch.where(skip, weight, moved)
    first.copy_(torch.where(skip, first, m))
    second.copy_(torch.where(skip, second, v))
    weight.copy_(moved)
    if half is not None:
        half.copy_(moved)


@cache
def _compiled(backend: Any = "inductor") -> Any:
    # To choose between two sizes of block, the compiler would time both on the first weights, and put these back from the host
    # after each run: 8 s of the first step of a 3B model, whose embedding has half a gigabyte (docs/log.md).
    options: dict[str, Any] | None = {"triton.autotune_pointwise": False} if backend == "inductor" else None
    return torch.compile(_adamw, backend=backend, options=options)
