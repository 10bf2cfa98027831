"""Models of the same shapes as one: their weights along a new first dimension, their prompts one after the other.

Small models leave a GPU waiting for its next kernel; a stack of them launches as many kernels as one. The stack is a
``LoopedTransformer`` whose linear maps and layer norms have weights for every model, so all else is the code of one.
Loop counts may differ: all end at the last loop, and a model that runs fewer starts later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.model.blocks import LayerNorm
from loopprobe.model.hook_points import NormHooks
from loopprobe.model.looped import LoopedTransformer


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    """The parameters along a new first dimension; from now on each is a view of its part."""
    whole = nn.Parameter(torch.stack([parameter.detach() for parameter in parameters]))
    for parameter, part in zip(parameters, whole.detach(), strict=True):
        parameter.data = part
    return whole


class StackedLinear(nn.Module):
    """Several linear maps, each on its own part of the batch."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _stacked([part.weight for part in parts])  # [model, out, in]
        self.bias = _stacked([part.bias for part in parts])  # [model, out]

    def forward(self, x: Float[Tensor, "rows pos d_in"]) -> Float[Tensor, "rows pos d_out"]:
        parts = x.reshape(len(self.weight), -1, x.shape[-1])
        return torch.baddbmm(self.bias[:, None], parts, self.weight.mT).view(*x.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """Several layer norms, each on its own part of the batch."""

    def __init__(self, parts: Sequence[LayerNorm]) -> None:
        super().__init__()
        self.weight = _stacked([part.weight for part in parts])  # [model, d_model]
        self.bias = _stacked([part.bias for part in parts])
        self.eps = parts[0].eps

    def forward(self, x: Float[Tensor, "rows pos d_model"], hooks: NormHooks) -> Float[Tensor, "rows pos d_model"]:
        normalized = F.layer_norm(x, x.shape[-1:], eps=self.eps).view(len(self.weight), -1, *x.shape[1:])
        return (normalized * self.weight[:, None, None] + self.bias[:, None, None]).view_as(x)


class Stack(LoopedTransformer):
    """Models that differ in weights, loop counts and injection only.

    The parameters of the models become views of those of the stack: what an optimiser of a model changes, the stack
    sees, and the other way round.

    Args:
        models: at least one, equal in all shapes, on one device.
    """

    def __init__(self, models: Sequence[LoopedTransformer]) -> None:
        super().__init__(models[0].cfg, torch.Generator())  # not torch's own: nothing is drawn that another would miss
        self.models = list(models)  # a list: not registered as modules of the stack
        for name, module in list(self.named_modules()):
            parts = [model.get_submodule(name) for model in models] if isinstance(module, nn.Linear | LayerNorm) else []
            if isinstance(module, nn.Linear):
                self.set_submodule(name, StackedLinear(parts))
            elif isinstance(module, LayerNorm):
                self.set_submodule(name, StackedLayerNorm(parts))
        self.W_pos = _stacked([model.W_pos for model in models])  # [model, pos, d_model]

    def positions(self, x: Tensor, first: int) -> Tensor:
        wanted = self.W_pos[:, None, first : first + x.shape[1]]
        return wanted.expand(-1, len(x) // len(self.models), -1, -1).reshape(x.shape)

    def initial_state(self, e: Tensor) -> Tensor:
        return self._by_model("initial_state", e)

    def inject(self, z: Tensor, e: Tensor) -> Tensor:
        return self._by_model("inject", z, e)

    def _by_model(self, method: str, *states: Tensor) -> Tensor:
        """What depends on the kind of injection: at once where all models have the same."""
        if len({model.cfg.injection for model in self.models}) == 1:
            return getattr(super(), method)(*states)
        parts = zip(self.models, *(state.chunk(len(self.models)) for state in states), strict=True)
        return torch.cat([getattr(model, method)(*part) for model, *part in parts])

    def run_windows(
        self, xs: Tensor, ys: Tensor, n_loops: Sequence[int], windows: Sequence[int]
    ) -> list[Float[Tensor, "loop batch n_points"]]:
        """Each model's predictions after the last loops of its window, which alone carry its gradient.

        Every model runs as many loops as the longest: the states of one that needs fewer are set back when its time
        comes, and cut from what was before where its window begins.

        Args:
            xs, ys: prompts of the first model, then as many of the second, and so on.
            n_loops, windows: of each model.

        Returns:
            What ``run_loops(…, keep_loops=window, grad_loops=window)`` of each model gives, within rounding.
        """
        total, kept = max(n_loops), max(windows)
        e = self.embed(xs, ys)
        z = start = self.initial_state(e)
        predictions = []
        for loop in range(total):
            with torch.set_grad_enabled(loop >= total - kept):
                if loop:
                    z = _where([loop == total - window for window in windows], z.detach(), z)
                    z = _where([loop == total - own for own in n_loops], start, z)
                z = self.step(z, e, loop)
                if loop >= total - kept:
                    predictions.append(self.predict(z, loop=loop))
        by_model = torch.stack(predictions).chunk(len(self.models), dim=1)
        return [part[-window:] for part, window in zip(by_model, windows, strict=True)]

    def pass_gradients_on(self) -> None:
        """Give every model's parameters their part of the stack's gradients."""
        for name, parameter in self.named_parameters():
            parts = [None] * len(self.models) if parameter.grad is None else parameter.grad
            for model, part in zip(self.models, parts, strict=True):
                model.get_parameter(name).grad = part


def _where(chosen: Sequence[bool], yes: Tensor, no: Tensor) -> Tensor:
    """The rows of the chosen models from one tensor, those of the others from another."""
    if not any(chosen):
        return no
    parts = zip(chosen, yes.chunk(len(chosen)), no.chunk(len(chosen)), strict=True)
    return torch.cat([one if choice else other for choice, one, other in parts])


@torch.no_grad()
def muon_together(optimizers: Sequence[torch.optim.Muon]) -> None:
    """A step of several Muon optimisers, the matrices of one shape orthogonalised at once.

    The formulas are those of ``torch.optim.Muon.step``: momentum after Nesterov, five Newton-Schulz iterations in
    bfloat16, the rate times the root of rows / columns (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, dict[str, Any]]]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for matrix in group["params"]:
                state = optimizer.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                by_shape.setdefault(matrix.shape, []).append((matrix, state["momentum_buffer"], group))
    for shape, members in by_shape.items():
        matrices, buffers, groups = zip(*members, strict=True)
        settings = groups[0]
        momentum = torch.stack(buffers)
        gradient = torch.stack([matrix.grad for matrix in matrices])
        momentum.lerp_(gradient, 1 - settings["momentum"])
        update = _orthogonal(gradient.lerp(momentum, settings["momentum"]), settings)
        adjusted = max(1, shape[0] / shape[1]) ** 0.5
        torch._foreach_copy_(list(buffers), list(momentum))
        given = [torch.as_tensor(group["lr"], device=update.device) for group in groups]
        decays = torch._foreach_mul(given, [group["weight_decay"] for group in groups])
        rate, decay = (torch.stack(list(numbers)).view(-1, 1, 1) for numbers in (given, decays))
        changed = torch.stack(matrices) * (1 - decay) - adjusted * rate * update
        torch._foreach_copy_(list(matrices), list(changed))


def _orthogonal(update: Float[Tensor, "matrix rows columns"], settings: dict[str, Any]) -> Tensor:
    """Newton-Schulz: nearly the orthogonal factors of the matrices."""
    a, b, c = settings["ns_coefficients"]
    wide = update.shape[1] <= update.shape[2]
    x = (update if wide else update.mT).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Trial:
    """Whether steps are done as one stack: as told, or as a trial in turns of five steps finds.

    The first turns of both warm up; the second are timed.
    """

    def __init__(self, together: bool | None) -> None:
        self.together = together
        self.turns = ([False] * 5 + [True] * 5) * 2
        self.seconds = {False: 0.0, True: 0.0}

    @contextmanager
    def step(self, device: torch.device) -> Iterator[bool]:
        """Do one step in the way that it yields."""
        if self.together is not None:
            yield self.together
            return
        as_one, timed = self.turns.pop(0), len(self.turns) < 10
        started = time.perf_counter()
        yield as_one
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if timed:
            self.seconds[as_one] += time.perf_counter() - started
        if not self.turns:
            self.together = self.seconds[True] < self.seconds[False]
