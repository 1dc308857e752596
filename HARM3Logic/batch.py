"""One prepared case, and several of them as the tensors a model takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from HARM3Logic.errors import MissingInput
from HARM3Logic.tiles import TileGrid
from HARM3Logic.volume import Grid, Registration


@dataclass(frozen=True)
class Placement:
    """Where one volume of a case lies: its own grid, and the way there from the model grid.

    Args:
        reference: grid of the file as the user gave it.
        matrix: (4, 4), mm of the model grid to mm of the file (LPS).
    """

    reference: Grid
    matrix: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Prepared:
    """One case as the model sees it, and how to get back. Absent inputs are zeros with mask False, or None.

    `tumour` is 0 or 1, and NaN at a timepoint without a mask. `clinical` holds the values of the schema's variables, not scaled.
    """

    case_id: str
    mri: Float[Tensor, "T S D H W"] | None = None
    mri_mask: Bool[Tensor, "T S"] | None = None
    body: Bool[Tensor, "D H W"] | None = None
    tumour: Float[Tensor, "T D H W"] | None = None
    tiles: Float[Tensor, "N F"] | None = None
    tile_xy_um: Float[Tensor, "N 2"] | None = None
    ct: Float[Tensor, "D H W"] | None = None
    tumour_ct: Float[Tensor, "D H W"] | None = None
    clinical: Float[Tensor, " V"] | None = None
    clinical_mask: Bool[Tensor, " V"] | None = None
    label: int | None = None
    grid: Grid | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict)
    registrations: Mapping[str, Registration] = field(default_factory=dict)
    tile_grids: tuple[tuple[str, TileGrid], ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Batch:
    """Inputs of B cases. Masks are True where something is present; absent entries are zero, an absent CT or mask of the tumour NaN."""

    mri: Float[Tensor, "B T S D H W"] | None = None
    mri_mask: Bool[Tensor, "B T S"] | None = None
    tumour: Float[Tensor, "B T D H W"] | None = None
    tiles: Float[Tensor, "B N F"] | None = None
    tile_mask: Bool[Tensor, "B N"] | None = None
    tile_xy_um: Float[Tensor, "B N 2"] | None = None
    ct: Float[Tensor, "B D H W"] | None = None
    clinical: Float[Tensor, "B V"] | None = None
    clinical_mask: Bool[Tensor, "B V"] | None = None
    label: Int[Tensor, " B"] | None = None

    def need(self, *names: str) -> tuple[Tensor, ...]:
        """The named fields.

        Raises:
            MissingInput: one of them is not there.
        """
        fields = self.tensors()
        missing = [name for name in names if name not in fields]
        if missing:
            raise MissingInput(
                f"the batch has {', '.join(fields) or 'nothing'}; the model needs {', '.join(names)}.",
                f"Give {' and '.join(missing)} or choose a checkpoint trained without.",
            )
        return tuple(fields[name] for name in names)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not None}

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{name: value.to(device) for name, value in self.tensors().items()})

    def take(self, rows: Int[Tensor, " n"]) -> Batch:
        """The named rows, in that order; a row may be taken more than once."""
        return Batch(**{name: value[rows] for name, value in self.tensors().items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values()), ()))


def collate(cases: Sequence[Prepared]) -> Batch:
    """A batch of prepared cases; bags of tiles are padded to the longest."""
    features = next((case.tiles.shape[1] for case in cases if case.tiles is not None), 0)
    longest = max((len(case.tiles) for case in cases if case.tiles is not None), default=0)
    bags: dict[str, Tensor] = {}
    if longest:
        bags = {
            "tiles": torch.zeros(len(cases), longest, features),
            "tile_mask": torch.zeros(len(cases), longest, dtype=torch.bool),
            "tile_xy_um": torch.zeros(len(cases), longest, 2),
        }
        for row, case in enumerate(cases):
            if case.tiles is not None and case.tile_xy_um is not None:
                bags["tiles"][row, : len(case.tiles)] = case.tiles
                bags["tile_mask"][row, : len(case.tiles)] = True
                bags["tile_xy_um"][row, : len(case.tiles)] = case.tile_xy_um
    labels = [case.label for case in cases]
    return Batch(
        mri=_stacked([case.mri for case in cases]),
        mri_mask=_stacked([case.mri_mask for case in cases], absent=False),
        tumour=_stacked([case.tumour for case in cases], absent=torch.nan),
        ct=_stacked([case.ct for case in cases], absent=torch.nan),
        clinical=_stacked([case.clinical for case in cases]),
        clinical_mask=_stacked([case.clinical_mask for case in cases], absent=False),
        label=torch.tensor([y for y in labels if y is not None]) if all(y is not None for y in labels) else None,
        **bags,
    )


def _stacked(rows: Sequence[Tensor | None], absent: float = 0.0) -> Tensor | None:
    """The cases' tensors as one, filled with `absent` where a case has none; None where no case has one."""
    like = next((row for row in rows if row is not None), None)
    return None if like is None else torch.stack([torch.full_like(like, absent) if row is None else row for row in rows])
