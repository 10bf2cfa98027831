"""Token tasks that look things up: copies, hops, pointers and brackets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.started import Chance, Names, StartedTask, TokenIds, doubling, integers, letters, number_names

BRACKETS = ("(", ")", "[", "]")
UNDEFINED = "∅"  # the answer where there is none


@dataclass(frozen=True)
class Copy(StartedTask):
    """The symbols once more."""

    name = "copy"
    short = "copy"
    counts = "symbols"
    theory = "two layers suffice with positions (Jelassi et al., arXiv 2402.01032)"

    backwards: ClassVar[bool] = False

    length: int = 12
    symbols: int = 8

    @property
    def symbols_of(self) -> Names:
        return (*letters(self.symbols), ">")

    @property
    def outputs(self) -> Names:  # type: ignore[override]
        return letters(self.symbols)

    def n_symbols(self, length: int) -> int:
        return 2 * length

    def may_be(self, length: int) -> list[int]:
        return [self.symbols] * length + [0] * length

    def lay(self, chance: Chance, length: int) -> TokenIds:
        symbols = integers(chance, self.symbols)
        return torch.cat([symbols, torch.full_like(symbols, self.symbols)], 1)

    def answer(self, tokens: TokenIds) -> Tensor:
        symbols = tokens[:, : tokens.shape[1] // 2]
        return symbols.flip(1) if self.backwards else symbols.clone()

    def aims(self, tokens: TokenIds) -> dict[str, Tensor]:
        """Return the symbol that the query copies: the last one, or in reverse the first."""
        place = torch.arange(tokens.shape[1]).expand(tokens.shape).to(tokens.device)
        return {"its source": place == (0 if self.backwards else tokens.shape[1] // 2 - 1)}


@dataclass(frozen=True)
class Reverse(Copy):
    """The symbols from the last to the first."""

    name = "reverse"
    short = "reverse"
    backwards = True


@dataclass(frozen=True)
class PHop(StartedTask):
    """The symbol where so many hops end, for the last half of the symbols."""

    name = "p_hop"
    short = "phop"
    counts = "hops"
    theory = (
        "depth floor(log2 p) + 2 suffices, and less than order log p does not unless parallel computation is faster "
        "than believed (Sanford et al., arXiv 2402.09268)"
    )
    compares = True

    length: int = 4
    symbols: int = 4
    context: int = 32

    def __post_init__(self) -> None:
        """Raise LoopprobeError where there are too few symbols."""
        if self.symbols < 3:
            raise LoopprobeError(
                f"symbols ({self.symbols}) must be at least 3 for p_hop: no two neighbours are equal, and "
                "two symbols would only alternate; raise it"
            )

    @property
    def longest(self) -> int:
        """The most hops that there is a token for."""
        return 2 * self.length

    @property
    def symbols_of(self) -> Names:
        return (*letters(self.symbols), *map(str, range(1, 2 * self.length + 1)))

    @property
    def outputs(self) -> Names:  # type: ignore[override]
        return (*letters(self.symbols), UNDEFINED)

    def n_symbols(self, length: int) -> int:
        return self.context + 1

    def chances(self, length: int) -> int:
        return self.context

    def may_be(self, length: int) -> list[int]:
        return [0] + [self.symbols] * self.context

    def least_depth(self, length: int) -> int:
        return math.floor(math.log2(length)) + 2

    def lay(self, chance: Chance, length: int) -> TokenIds:
        """Make the number of hops, and symbols: of equal neighbours a hop from the second would stay there."""
        symbols = self.symbols
        hops = torch.full((len(chance), 1), symbols + length - 1)
        further = 1 + integers(chance[:, 1:], symbols - 1)
        return torch.cat([hops, torch.cat([integers(chance[:, :1], symbols), further], 1).cumsum(1) % symbols], 1)

    def wanted(self, tokens: TokenIds) -> Tensor:
        return tokens[:, 0] - int(self.symbols) + 1

    def symbols_at(self, tokens: TokenIds, places: Tensor) -> Tensor:
        found = tokens[:, 1:].gather(1, places.clamp_min(0))
        return torch.where(places < 0, self.symbols, found)

    def answer(self, tokens: TokenIds) -> Tensor:
        wanted = self.wanted(tokens)
        places = torch.stack(_hops(tokens, int(wanted.max())))
        ends = places[wanted - 1, torch.arange(len(tokens), device=tokens.device)]
        return self.symbols_at(tokens, ends)[:, -(self.context // 2) :]

    def held(self, tokens: TokenIds) -> dict[str, Tensor]:
        none = torch.full_like(tokens[:, :1], -1)
        places = _hops(tokens, int(self.wanted(tokens).max()))
        found = [torch.where(at < 0, -1, self.symbols_at(tokens, at)) for at in places]
        return {f"after hop {i + 1}": torch.cat([none, symbols], 1) for i, symbols in enumerate(found)}

    def aims(self, tokens: TokenIds) -> dict[str, Tensor]:
        place = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device)
        places = _hops(tokens, int(self.wanted(tokens).max()))
        return {f"hop {i + 1}": (place == at[:, -1:]) & (place >= 0) for i, at in enumerate(places)}


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


@dataclass(frozen=True)
class Pointer(StartedTask):
    """The nodes on a path through a graph, whose edges come first."""

    name = "pointer"
    short = "pointer"
    counts = "steps"
    theory = (
        "depth 1 + log n suffices: edges are bound, then paths doubled (as p-hop, Sanford et al., arXiv 2402.09268)"
    )
    compares = True

    length: int = 4
    context: int = 8

    @property
    def symbols_of(self) -> Names:
        return (*number_names(self.context), ">")

    @property
    def outputs(self) -> Names:  # type: ignore[override]
        return number_names(self.context)

    def n_symbols(self, length: int) -> int:
        return 2 * self.context + length

    def chances(self, length: int) -> int:
        return 2 * self.context + 1

    def least_depth(self, length: int) -> int:
        return 1 + doubling(length)

    def lay(self, chance: Chance, length: int) -> TokenIds:
        """Make every node's edge to another in random order, the start, and a mark for each further step."""
        n = self.context
        order = chance[:, :n].argsort(1)
        edges = torch.stack([order, integers(chance[:, n : 2 * n], n)], -1).flatten(1)
        marks = torch.full((len(chance), length - 1), n)
        return torch.cat([edges, integers(chance[:, -1:], n), marks], 1)

    def answer(self, tokens: TokenIds) -> Tensor:
        n = self.context
        nodes, ends = tokens[:, : 2 * n].reshape(-1, n, 2).unbind(-1)
        leads = torch.zeros_like(ends).scatter(1, nodes, ends)
        here, visited = tokens[:, 2 * n], []
        for _ in range(tokens.shape[1] - 2 * n):
            here = leads.gather(1, here[:, None]).squeeze(1)
            visited.append(here)
        return torch.stack(visited, 1)

    def may_be(self, length: int) -> list[int]:
        n = self.context
        return [0, n] * n + [n] + [0] * (length - 1)


@dataclass(frozen=True)
class Dyck(StartedTask):
    """The bracket that may close next, after every bracket."""

    name = "dyck"
    short = "dyck"
    counts = "levels"
    theory = "two layers suffice where the depth is bounded (Yao et al., arXiv 2105.11115)"
    symbols_of = BRACKETS
    outputs: ClassVar[Names] = (UNDEFINED, ")", "]")  # type: ignore[misc]
    compares = True

    length: int = 4
    context: int = 32

    def n_symbols(self, length: int) -> int:
        return self.context

    def chances(self, length: int) -> int:
        return 2 * self.context

    def may_be(self, length: int) -> list[int]:
        return [len(BRACKETS)] * self.context

    def least_depth(self, length: int) -> int:
        return 2

    def lay(self, chance: Chance, length: int) -> TokenIds:
        """Make a random walk of depth at most ``length``: the kind of an opening bracket is drawn."""
        n = self.context
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

    def answer(self, tokens: TokenIds) -> Tensor:
        return walk(tokens)[1]

    def held(self, tokens: TokenIds) -> dict[str, Tensor]:
        depth, innermost = walk(tokens)
        return {"depth": depth, "innermost": innermost}


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
