"""Stacks: models of the same shapes that are trained as one model.

Small models leave a GPU waiting for its next kernel, and a stack of them launches only as many kernels as one model.
Their weights lie along a new first dimension, and their prompts follow one another in the batch. The stack is a
``LoopedTransformer`` whose linear maps, embeddings and norms have weights for every model; all other code is that of
one model. Loop counts may differ: all models end at the last loop, and a model with fewer loops starts later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from loopprobe.model.blocks import LayerNorm, RMSNorm
from loopprobe.model.hook_points import NormHooks
from loopprobe.model.looped import LoopedTransformer
from loopprobe.model.reading import ReadAt
from loopprobe.support.autocast import forget_casts


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    """Stack the parameters along a new first dimension, and make each a view of its part."""
    whole = nn.Parameter(torch.stack([parameter.detach() for parameter in parameters]))
    for parameter, part in zip(parameters, whole.detach(), strict=True):
        parameter.data = part
    return whole


class StackedLinear(nn.Module):
    """Several linear maps, each on its own part of the batch."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _stacked([part.weight for part in parts])  # [model, out, in]
        self.bias = None if parts[0].bias is None else _stacked([part.bias for part in parts])  # [model, out]

    def forward(self, x: Float[Tensor, "rows pos d_in"]) -> Float[Tensor, "rows pos d_out"]:
        parts, weight = x.reshape(len(self.weight), -1, x.shape[-1]), self.weight.mT
        out = torch.bmm(parts, weight) if self.bias is None else torch.baddbmm(self.bias[:, None], parts, weight)
        return out.view(*x.shape[:-1], -1)


class StackedEmbedding(nn.Module):
    """Several embeddings, each of its own part of the batch."""

    def __init__(self, parts: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = _stacked([part.weight for part in parts])  # [model, token, d_model]

    def forward(self, tokens: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos d_model"]:
        n_models, n_tokens, _ = self.weight.shape
        first = n_tokens * torch.arange(n_models, device=tokens.device).repeat_interleave(len(tokens) // n_models)
        return F.embedding(tokens + first[:, None], self.weight.flatten(0, 1))


class StackedNorm(nn.Module):
    """Several norms, each on its own part of the batch."""

    def __init__(self, parts: Sequence[LayerNorm | RMSNorm]) -> None:
        super().__init__()
        self.weight = _stacked([part.weight for part in parts])  # [model, d_model]
        layer_norms = [part for part in parts if isinstance(part, LayerNorm)]
        self.bias = _stacked([part.bias for part in layer_norms]) if layer_norms else None
        self.eps = parts[0].eps

    def forward(self, x: Float[Tensor, "rows pos d_model"], hooks: NormHooks) -> Float[Tensor, "rows pos d_model"]:
        norm = F.rms_norm if self.bias is None else F.layer_norm
        normalized = norm(x, x.shape[-1:], eps=self.eps).view(len(self.weight), -1, *x.shape[1:])
        scaled = normalized * self.weight[:, None, None]
        return (scaled if self.bias is None else scaled + self.bias[:, None, None]).view_as(x)


_STACKED: dict[type[nn.Module], Any] = {
    nn.Linear: StackedLinear, nn.Embedding: StackedEmbedding, LayerNorm: StackedNorm, RMSNorm: StackedNorm,
}  # fmt: skip


class Stack(LoopedTransformer):
    """Models that differ in weights, loop counts and injection only.

    The models' parameters become views of the stack's, so that an optimiser of a model changes the stack, and the other
    way round.

    Args:
        models: at least one model; all have the same shapes and are on one device.
    """

    def __init__(self, models: Sequence[LoopedTransformer]) -> None:
        # A generator for this alone leaves the state of torch's global generator unchanged.
        super().__init__(models[0].cfg, torch.Generator())
        self.models = list(models)  # a list: not registered as modules of the stack
        self.late = [0] * len(self.models)  # the loop in which each begins its own
        for name, module in list(self.named_modules()):
            if (stacked := _STACKED.get(type(module))) is not None:
                self.set_submodule(name, stacked([model.get_submodule(name) for model in models]))
        for name in ("W_pos", "W_loop"):
            if hasattr(self, name):
                setattr(self, name, _stacked([getattr(model, name) for model in models]))  # [model, pos, d_model]

    def positions(self, x: Tensor, first: int) -> Tensor:
        wanted = self.W_pos[:, None, first : first + x.shape[1]]
        return wanted.expand(-1, len(x) // len(self.models), -1, -1).reshape(x.shape)

    def loop_vector(self, x: Tensor, loop: int) -> Tensor:
        own = [min(max(loop - late, 0), self.cfg.n_loops - 1) for late in self.late]
        wanted = torch.stack([vectors[i] for vectors, i in zip(self.W_loop, own, strict=True)])[:, None, None]
        return wanted.expand(-1, len(x) // len(self.models), x.shape[1], -1).reshape(x.shape)

    def initial_state(self, e: Tensor) -> Tensor:
        return self._by_model("initial_state", e)

    def inject(self, z: Tensor, e: Tensor) -> Tensor:
        return self._by_model("inject", z, e)

    def _by_model(self, method: str, *states: Tensor) -> Tensor:
        """Call a method that depends on the injection: once if all models have the same one, else for each model."""
        if len({model.cfg.injection for model in self.models}) == 1:
            return getattr(super(), method)(*states)
        parts = zip(self.models, *(state.chunk(len(self.models)) for state in states), strict=True)
        return torch.cat([getattr(model, method)(*part) for model, *part in parts])

    def run_windows(
        self, inputs: Sequence[Tensor], n_loops: Sequence[int], windows: Sequence[int], read_at: ReadAt = None
    ) -> list[Float[Tensor, "loop batch answer *value"]]:
        """Run all models; return the answers of each after the loops of its window, which alone carry gradient.

        Every model runs as many loops as the longest. A model with fewer loops has its states set back to the start
        when its own loops begin, and they are detached where its window begins.

        Args:
            inputs: the prompts of the first model, then as many of the second, and so on.
            n_loops, windows: the loop count and the window of each model.
            read_at: the tokens that are read, see ``LoopedTransformer.forward``.

        Returns:
            For each model the result of ``run_loops(…, keep_loops=window, grad_loops=window)``, within rounding.
        """
        total, longest_window = max(n_loops), max(windows)
        self.late = [total - count for count in n_loops]
        e = self.embed(*inputs)
        z = start = self.initial_state(e)
        outputs = []
        for loop in range(total):
            if loop == total - longest_window:
                forget_casts(z.device)
            with torch.set_grad_enabled(loop >= total - longest_window):
                if loop:
                    z = _where([loop == total - window for window in windows], z.detach(), z)
                    z = _where([loop == total - count for count in n_loops], start, z)
                z = self.step(z, e, loop)
                if loop >= total - longest_window:
                    outputs.append(self.predict(z, loop=loop, read_at=read_at))
        by_model = torch.stack(outputs).chunk(len(self.models), dim=1)
        return [part[-window:] for part, window in zip(by_model, windows, strict=True)]

    def pass_gradients_on(self) -> None:
        """Assign to the parameters of every model their part of the stack's gradients."""
        for name, parameter in self.named_parameters():
            parts = [None] * len(self.models) if parameter.grad is None else parameter.grad
            for model, part in zip(self.models, parts, strict=True):
                model.get_parameter(name).grad = part


def _where(chosen: Sequence[bool], yes: Tensor, no: Tensor) -> Tensor:
    """Take the rows of the chosen models from ``yes`` and those of the others from ``no``."""
    if not any(chosen):
        return no
    parts = zip(chosen, yes.chunk(len(chosen)), no.chunk(len(chosen)), strict=True)
    return torch.cat([one if choice else other for choice, one, other in parts])


@torch.no_grad()
def muon_together(optimizers: Sequence[torch.optim.Muon]) -> None:
    """Do a step of several Muon optimisers, and orthogonalise all matrices of one shape at once.

    The formulas are those of ``torch.optim.Muon.step``: Nesterov momentum, five Newton-Schulz iterations in bfloat16,
    and a rate times √(rows / columns) (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
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
        rates = [torch.as_tensor(group["lr"], device=update.device) for group in groups]
        decays = torch._foreach_mul(rates, [group["weight_decay"] for group in groups])
        rate, decay = (torch.stack(list(numbers)).view(-1, 1, 1) for numbers in (rates, decays))
        changed = torch.stack(matrices) * (1 - decay) - adjusted * rate * update
        torch._foreach_copy_(list(matrices), list(changed))


def _orthogonal(update: Float[Tensor, "matrix rows columns"], settings: dict[str, Any]) -> Tensor:
    """Approximate the orthogonal factors of the matrices by Newton-Schulz iterations."""
    a, b, c = settings["ns_coefficients"]
    wide = update.shape[1] <= update.shape[2]
    x = (update if wide else update.mT).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Trial:
    """The choice between steps as one stack and steps one by one.

    Without a fixed choice, both ways take turns of five steps. The first turn of each is a warm-up, and the second is
    timed; the faster way is then used.

    Args:
        together: True for one stack, False for one by one, and None for a trial.
    """

    def __init__(self, together: bool | None) -> None:
        self.together = together
        self.turns = ([False] * 5 + [True] * 5) * 2
        self.seconds = {False: 0.0, True: 0.0}

    @contextmanager
    def step(self, device: torch.device) -> Iterator[bool]:
        """Time a step; yield True if it is to be done as one stack, and False if one by one."""
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
