"""Attention parts the models share. Masks are True where a token is present."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPooling(nn.Module):
    """K learned queries read a bag of any length: (B, N, E) -> (B, K, E).

    A learned stand-in token takes the place of an empty bag, so that a case without tiles is a case like any other.

    Source: multi-head attention pooling, HARM3-Fusion section 2.3; pooling by multi-head attention without residual,
    Set Transformer, Lee et al. 2019, eq. 11. The stand-in is ours.
    """

    def __init__(self, width: int, queries: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))  # unit spread: smaller ones all ask the same at the start
        self.absent = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self, tokens: Float[Tensor, "B N E"], present: Bool[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B K E"], Float[Tensor, "B K N"]]:
        """The pooled tokens and, per query, the attention over the bag (mean of the heads; zero for an empty bag)."""
        empty = ~present.any(dim=1, keepdim=True)
        tokens = torch.cat([tokens, self.absent.expand(len(tokens), 1, -1)], dim=1)
        ignore = ~torch.cat([present, empty], dim=1)
        queries = self.queries.expand(len(tokens), -1, -1)
        pooled, attention = self.attention(queries, tokens, tokens, key_padding_mask=ignore)
        return pooled, attention[..., :-1]


class CrossAttention(nn.Module):
    """Slide tokens ask, MRI tokens answer: softmax(Q K^T / sqrt(d)) V.

    Args:
        heads: 1 is the paper's; more split the width.
        residual: add the queries and normalise; the paper has neither.

    Source: HARM3-Fusion, eqs. 6 and 7.
    """

    def __init__(self, width: int, heads: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width) if residual else None
        for layer in (self.query, self.key):  # ours: with smaller scores every query starts as the mean of all tokens
            nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)

    def forward(
        self,
        asking: Float[Tensor, "B Q E"],
        answering: Float[Tensor, "B L E"],
        present: Bool[Tensor, "B L"] | None = None,
        prior: Float[Tensor, " L"] | None = None,
    ) -> tuple[Float[Tensor, "B Q E"], Float[Tensor, "B Q L"]]:
        """The fused tokens and the attention (mean of the heads). Every case needs at least one token present.

        Args:
            prior: added to the scores of each answering token.
        """
        q, k, v = (_split(layer(x), self.heads) for layer, x in ((self.query, asking), (self.key, answering), (self.value, answering)))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if prior is not None:
            scores = scores + prior
        if present is not None:
            scores = scores.masked_fill(~present[:, None, None, :], -torch.inf)
        attention = scores.softmax(dim=-1)  # eq. 6
        fused = _merge(attention @ v)  # eq. 7
        if self.norm is not None:
            fused = self.norm(fused + asking)
        return fused, attention.mean(dim=1)


class CoAttention(nn.Module):
    """Tokens of one modality ask a bag of another: multi-head attention whose keys are its values. A case without a bag gets zeros.

    Source: MCAT, Chen et al. 2021, eq. 3, and its official code: one head, `nn.MultiheadAttention`'s projections with biases.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self, asking: Float[Tensor, "B Q E"], bag: Float[Tensor, "B N E"], present: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B Q E"], Float[Tensor, "B Q N"]]:
        """The co-attended tokens and the attention over the bag (mean of the heads; zero for an empty bag)."""
        if present is None:
            present = torch.ones(bag.shape[:2], dtype=torch.bool, device=bag.device)
        filled = present.any(dim=1)[:, None, None]
        # what is not there is not read; an empty bag has nothing to normalise over, so that all of it is read and then cleared
        attended, attention = self.attention(asking, bag, bag, key_padding_mask=~present & filled[:, 0])
        return attended * filled, attention * filled

    def scores(self, asking: Float[Tensor, "B Q E"], bag: Float[Tensor, "B N E"]) -> Float[Tensor, "B heads Q N"]:
        """Each head's q k^T / sqrt(d), before the softmax."""
        part, heads = self.attention, self.attention.num_heads
        (query, key, _), (query_bias, key_bias, _) = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
        q, k = _split(F.linear(asking, query, query_bias), heads), _split(F.linear(bag, key, key_bias), heads)
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


class GatedPooling(nn.Module):
    """A bag of any length to K weighted means: (B, N, E) -> (B, K, E); an empty bag gives zeros.

    Args:
        hidden: width of the space in which a token is scored.
        rows: K, each with its own attention.

    Source: gated attention, Ilse et al. 2018, eqs. 8 and 9; dropout on both factors as in CLAM and MCAT.
    """

    def __init__(self, width: int, hidden: int, rows: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, rows)
        self.dropout = nn.Dropout(dropout)

    def scores(self, bag: Float[Tensor, "B N E"]) -> Float[Tensor, "B K N"]:
        """Before the softmax."""
        scored = self.score(self.dropout(self.content(bag).tanh()) * self.dropout(self.gate(bag).sigmoid()))  # eq. 9
        return scored.transpose(1, 2)

    def forward(
        self, bag: Float[Tensor, "B N E"], present: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B K E"], Float[Tensor, "B K N"]]:
        """The pooled tokens and the attention over the bag."""
        scores = self.scores(bag)
        if present is not None:
            filled = present.any(dim=1)[:, None, None]
            scores = scores.masked_fill(~present[:, None] & filled, -torch.inf)
            attention = scores.softmax(dim=-1) * filled
        else:
            attention = scores.softmax(dim=-1)
        return attention @ bag, attention  # eq. 8


class FeatureScale(nn.Module):
    """Features less their mean, over their spread, both of tiles seen in training; absent tiles are zero.

    Args:
        of_batch: scale a training batch by its own tiles, as a batch norm does, and remember those seen last rather than all alike. Only
            for models that are trained on several cases at once: a bag that is a batch would lose what sets it apart from others.

    Source: ours. An encoder's features share a large mean, under which what differs between slides is learned late.
    """

    def __init__(self, width: int, of_batch: bool = False) -> None:
        super().__init__()
        self.of_batch = of_batch
        self.seen = nn.BatchNorm1d(width, affine=False, momentum=0.1 if of_batch else None)

    def forward(self, tiles: Float[Tensor, "B N F"], present: Bool[Tensor, "B N"]) -> Float[Tensor, "B N F"]:
        rows, seen = tiles[present], self.seen
        learned = seen(rows) if self.training and len(rows) > 1 else None  # a single tile has no spread to learn from
        if learned is None or not self.of_batch:
            learned = F.batch_norm(rows, seen.running_mean, seen.running_var, eps=seen.eps)
        scaled = torch.zeros_like(tiles)
        scaled[present] = learned.to(tiles.dtype)
        return scaled

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Older checkpoints of HARM3-Fusion hold a plain batch norm here."""
        for name in self.seen.state_dict():
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}seen.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *others)


class RelativeBias(nn.Module):
    """What two tokens' places say about each other, one number per head: sequence, timepoint and 3D offset.

    Source: relative positional encoding, HARM3-Fusion section 2.2, whose form is not given; one learned table per axis is ours.
    """

    def __init__(self, heads: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(2 * size - 1, heads)) for size in sizes)

    def forward(self, places: Int[Tensor, "L A"]) -> Float[Tensor, "heads L L"]:
        bias = torch.zeros((), device=places.device)
        for table, place in zip(self.tables, places.unbind(dim=1), strict=True):
            offset = place[:, None] - place[None, :] + (len(table) - 1) // 2
            bias = bias + table[offset]
        return bias.permute(2, 0, 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with an additive bias; `collaborative` shares queries and keys between the heads.

    Collaborative heads mix one shared query/key space by a learned vector each. They start as the ordinary heads
    (each vector selects its own slice), so both forms agree until training moves them apart.

    Source: Cordonnier et al. 2020, eq. 7; HARM3-Fusion section 2.2 cites it for its self-attention.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, collaborative: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mixing = nn.Parameter(torch.eye(heads).repeat_interleave(width // heads, dim=1)) if collaborative else None

    def forward(
        self, tokens: Float[Tensor, "B L E"], present: Bool[Tensor, "B L"], bias: Float[Tensor, "heads L L"]
    ) -> Float[Tensor, "B L E"]:
        q, k, v = self.query_key_value(tokens).chunk(3, dim=-1)
        scale = (q.shape[-1] / self.heads) ** -0.5
        if self.mixing is None:
            q, k = _split(q, self.heads), _split(k, self.heads)
        else:
            q, k = q[:, None] * self.mixing[None, :, None, :], k[:, None].expand(-1, self.heads, -1, -1)
        mask = bias.to(q.dtype).masked_fill(~present[:, None, None, :], -torch.inf)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, _split(v, self.heads), attn_mask=mask, dropout_p=dropout, scale=scale)
        return self.out(_merge(mixed))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer with relative bias."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, collaborative: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout, collaborative)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(
        self, tokens: Float[Tensor, "B L E"], present: Bool[Tensor, "B L"], bias: Float[Tensor, "heads L L"]
    ) -> Float[Tensor, "B L E"]:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens), present, bias))
        return tokens + self.feed_forward(self.norm2(tokens))


class TokenHead(nn.Module):
    """Fused tokens to one logit: two convolutions along the tokens, their mean, an MLP.

    Args:
        widths: of both convolutions and of the MLP.

    Source: HARM3-Fusion, "CNN followed by MLP"; kernel, widths, norm and dropout are ours.
    """

    def __init__(self, width: int, widths: tuple[int, int, int], norm: Literal["batch", "group"], dropout: float) -> None:
        super().__init__()
        first, second, third = widths

        def normalise(channels: int) -> nn.Module:
            return nn.BatchNorm1d(channels) if norm == "batch" else nn.GroupNorm(8, channels)

        self.convolve = nn.Sequential(
            nn.Conv1d(width, first, 3, padding=1, bias=False), normalise(first), nn.ReLU(),
            nn.Conv1d(first, second, 3, padding=1, bias=False), normalise(second), nn.ReLU(),
        )  # fmt: skip
        self.decide = nn.Sequential(nn.Linear(second, third), nn.ReLU(), nn.Dropout(dropout), nn.Linear(third, 1))

    def forward(self, tokens: Float[Tensor, "B Q E"]) -> Float[Tensor, " B"]:
        return self.decide(self.convolve(tokens.transpose(1, 2)).mean(dim=2)).squeeze(1)


def _split(x: Float[Tensor, "B L E"], heads: int) -> Float[Tensor, "B heads L e"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Float[Tensor, "B heads L e"]) -> Float[Tensor, "B L E"]:
    return x.transpose(1, 2).flatten(2)
