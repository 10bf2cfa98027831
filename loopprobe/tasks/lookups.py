"""Token tasks that look things up: copies, hops, pointers and brackets."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.tasks.algebra import Chance, TokenIds, integers

# Copies


def draw_copy(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    symbols = integers(chance, task.symbols or 2)
    return torch.cat([symbols, torch.full_like(symbols, task.symbols or 2)], 1)


def solve_copy(task: TaskConfig, tokens: TokenIds) -> Tensor:
    symbols = tokens[:, : tokens.shape[1] // 2]
    return symbols.flip(1) if task.name == "reverse" else symbols.clone()


def source(task: TaskConfig, tokens: TokenIds) -> dict[str, Tensor]:
    """The symbol that the query copies: the last one, or in reverse the first."""
    place = torch.arange(tokens.shape[1]).expand(tokens.shape).to(tokens.device)
    return {"its source": place == (0 if task.name == "reverse" else tokens.shape[1] // 2 - 1)}


# p-hop induction


def draw_hops(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    """The number of hops, and symbols of which no two neighbours are equal: a hop from the second would stay there."""
    symbols = task.symbols or 2
    hops = torch.full((len(chance), 1), symbols + length - 1)
    further = 1 + integers(chance[:, 1:], symbols - 1)
    return torch.cat([hops, torch.cat([integers(chance[:, :1], symbols), further], 1).cumsum(1) % symbols], 1)


def _hops(tokens: TokenIds, n: int) -> list[Int[Tensor, "batch symbol"]]:
    """The place of each of n hops from each symbol, -1 where there is none; places count from the first symbol.

    A hop leads behind the last earlier place with the same symbol (Sanford et al., arXiv 2402.09268, definition 4.1).
    """
    symbols = tokens[:, 1:]
    place = torch.arange(symbols.shape[1], device=tokens.device)
    alike = (symbols[:, :, None] == symbols[:, None]) & (place[None] < place[:, None])
    hop = torch.where(alike, place + 1, 0).amax(-1) - (~alike.any(-1)).long()  # one behind it, or -1
    here, places = place.expand(symbols.shape), []
    for _ in range(n):
        here = torch.where(here < 0, -1, hop.gather(1, here.clamp_min(0)))
        places.append(here)
    return places


def _wanted_hops(task: TaskConfig, tokens: TokenIds) -> Tensor:
    return tokens[:, 0] - (task.symbols or 2) + 1


def _symbols_at(task: TaskConfig, tokens: TokenIds, places: Tensor) -> Tensor:
    found = tokens[:, 1:].gather(1, places.clamp_min(0))
    return torch.where(places < 0, task.symbols or 2, found)


def solve_hops(task: TaskConfig, tokens: TokenIds) -> Tensor:
    wanted = _wanted_hops(task, tokens)
    places = torch.stack(_hops(tokens, int(wanted.max())))
    ends = places[wanted - 1, torch.arange(len(tokens), device=tokens.device)]
    return _symbols_at(task, tokens, ends)[:, -(int(task.context or 2) // 2) :]


def hop_results(task: TaskConfig, tokens: TokenIds) -> dict[str, Tensor]:
    none = torch.full_like(tokens[:, :1], -1)
    places = _hops(tokens, int(_wanted_hops(task, tokens).max()))
    found = [torch.where(at < 0, -1, _symbols_at(task, tokens, at)) for at in places]
    return {f"after hop {i + 1}": torch.cat([none, symbols], 1) for i, symbols in enumerate(found)}


def hop_targets(task: TaskConfig, tokens: TokenIds) -> dict[str, Tensor]:
    place = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device)
    places = _hops(tokens, int(_wanted_hops(task, tokens).max()))
    return {f"hop {i + 1}": (place == at[:, -1:]) & (place >= 0) for i, at in enumerate(places)}


# Pointer chasing


def draw_pointer(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    """Every node's edge to another in random order, the start, and a mark for each further step."""
    n = task.context or 2
    order = chance[:, :n].argsort(1)
    edges = torch.stack([order, integers(chance[:, n : 2 * n], n)], -1).flatten(1)
    marks = torch.full((len(chance), length - 1), n)
    return torch.cat([edges, integers(chance[:, -1:], n), marks], 1)


def solve_pointer(task: TaskConfig, tokens: TokenIds) -> Tensor:
    n = task.context or 2
    nodes, ends = tokens[:, : 2 * n].reshape(-1, n, 2).unbind(-1)
    leads = torch.zeros_like(ends).scatter(1, nodes, ends)
    here, visited = tokens[:, 2 * n], []
    for _ in range(tokens.shape[1] - 2 * n):
        here = leads.gather(1, here[:, None]).squeeze(1)
        visited.append(here)
    return torch.stack(visited, 1)


def free_pointer(task: TaskConfig, length: int) -> list[int]:
    n = task.context or 2
    return [0, n] * n + [n] + [0] * (length - 1)


# Brackets


def draw_dyck(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    """A random walk of depth at most ``length``; what an opening bracket is, is drawn, and closing ones follow it."""
    n = task.context or 2
    stack = torch.zeros(len(chance), length + 1, dtype=torch.long)
    depth, rows, tokens = torch.zeros(len(chance), dtype=torch.long), torch.arange(len(chance)), []
    for step in range(n):
        opens = (depth == 0) | ((depth < length) & (chance[:, 2 * step] < 0.5))
        kind = integers(chance[:, 2 * step + 1], 2)
        kind = torch.where(opens, kind, stack[rows, (depth - 1).clamp_min(0)])
        stack[rows, depth] = torch.where(opens, kind, stack[rows, depth])
        depth = depth + torch.where(opens, 1, -1)
        tokens.append(2 * kind + (~opens).long())
    return torch.stack(tokens, 1)


def walk(tokens: TokenIds) -> tuple[Tensor, Tensor]:
    """After each token the depth, and the bracket that may close next; a bracket that closes nothing is passed over."""
    stack = torch.zeros(len(tokens), tokens.shape[1] + 1, dtype=torch.long, device=tokens.device)
    depth, rows = torch.zeros_like(tokens[:, 0]), torch.arange(len(tokens), device=tokens.device)
    depths, closing = [], []
    for token in tokens.unbind(1):
        opens = token % 2 == 0
        stack[rows, depth] = torch.where(opens, 1 + token // 2, stack[rows, depth])
        depth = torch.where(opens, depth + 1, (depth - 1).clamp_min(0))
        depths.append(depth)
        closing.append(torch.where(depth > 0, stack[rows, (depth - 1).clamp_min(0)], 0))
    return torch.stack(depths, 1), torch.stack(closing, 1)
