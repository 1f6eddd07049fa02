"""A small transformer with random weights, whose keys and values live in pages as SGLang has them.

Grouped-query attention, rotary positions, RMS norms, gated MLP; everything in bfloat16 on the CPU,
one thread, so that the same input gives the same bits. It computes only what it has no pages for.
Run by an interpreter that has SGLang.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    layers: int = 3
    width: int = 128
    heads: int = 8
    kv_heads: int = 2
    head_width: int = 16
    vocabulary: int = 251
    page_tokens: int = 16
    capacity_tokens: int = 1024


class PagedCache:
    """Keys and values of each layer, bfloat16 [layers, 2, tokens, kv heads, head width]: what a
    GPU's memory is to SGLang."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        size = (shape.layers, 2, shape.capacity_tokens, shape.kv_heads, shape.head_width)
        self.tensor = torch.zeros(size, dtype=torch.bfloat16)

    def to_host(self, pool: Any, page: int, index: int) -> None:
        """Copy a page into a host pool, at `index`."""
        tokens = self.shape.page_tokens
        data = self.tensor[:, :, page * tokens : (page + 1) * tokens]
        flat = data.permute(1, 2, 0, 3, 4).contiguous().flatten()
        pool.set_from_flat_data_page(index, flat)

    def from_host(self, pool: Any, page: int, index: int) -> None:
        """The way back."""
        shape, tokens = self.shape, self.shape.page_tokens
        flat = pool.get_data_page(index, flat=True)
        data = flat.reshape(2, tokens, shape.layers, shape.kv_heads, shape.head_width)
        self.tensor[:, :, page * tokens : (page + 1) * tokens] = data.permute(2, 0, 1, 3, 4)


class TinyModel:
    """Weights from a seed; `forward` is all there is."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self._random = torch.Generator().manual_seed(seed)
        width, inner = shape.width, 2 * shape.width
        self.embedding = self._weight(shape.vocabulary, width, scale=1.0)
        self.layers = [
            {
                "q": self._weight(shape.heads * shape.head_width, width),
                "k": self._weight(shape.kv_heads * shape.head_width, width),
                "v": self._weight(shape.kv_heads * shape.head_width, width),
                "o": self._weight(width, shape.heads * shape.head_width),
                "gate": self._weight(inner, width),
                "up": self._weight(inner, width),
                "down": self._weight(width, inner),
            }
            for _ in range(shape.layers)
        ]
        self.out = self._weight(shape.vocabulary, width)

    def forward(self, tokens: Sequence[int], first: int, cache: PagedCache) -> torch.Tensor:
        """Logits after these tokens, float32 [vocabulary]; `first` is the first one's position, and
        the cache holds everything before it."""
        shape = self.shape
        positions = torch.arange(first, first + len(tokens))
        x = self.embedding[torch.tensor(list(tokens))]
        for layer, weights in enumerate(self.layers):
            y = _norm(x)
            q = self._heads(y @ weights["q"].T, shape.heads)
            k = _rotated(self._heads(y @ weights["k"].T, shape.kv_heads), positions)
            v = self._heads(y @ weights["v"].T, shape.kv_heads)
            cache.tensor[layer, 0, positions] = k
            cache.tensor[layer, 1, positions] = v
            x = x + self._attend(_rotated(q, positions), cache.tensor[layer], positions) @ (
                weights["o"].T
            )
            y = _norm(x)
            gated = torch.nn.functional.silu(y @ weights["gate"].T) * (y @ weights["up"].T)
            x = x + gated @ weights["down"].T
        return (_norm(x[-1:]) @ self.out.T).float()[0]

    def _attend(
        self, q: torch.Tensor, cached: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Attention of [n, heads, width] over all up to each position: [n, heads * width]."""
        end = int(positions[-1]) + 1
        groups = self.shape.heads // self.shape.kv_heads
        k = cached[0, :end].repeat_interleave(groups, dim=1)
        v = cached[1, :end].repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) / math.sqrt(q.shape[-1])
        hidden = torch.arange(end)[None, :] > positions[:, None]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v.float())
        return mixed.reshape(len(positions), -1).to(torch.bfloat16)

    def _heads(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.reshape(len(x), heads, self.shape.head_width)

    def _weight(self, *size: int, scale: float | None = None) -> torch.Tensor:
        weight = torch.randn(size, generator=self._random)
        return (weight * (scale or 1.5 / math.sqrt(size[-1]))).to(torch.bfloat16)


def _norm(x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(torch.bfloat16)


def _rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [n, heads, width]."""
    half = x.shape[-1] // 2
    angles = positions[:, None].float() * (10_000.0 ** (-torch.arange(half).float() / half))
    sine, cosine = angles.sin()[:, None], angles.cos()[:, None]
    a, b = x.float().split(half, dim=-1)
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1).to(torch.bfloat16)
