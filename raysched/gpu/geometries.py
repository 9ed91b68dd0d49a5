"""What the GPU models that can be simulated can be cut into, and where profiles may start on each grid.

From NVIDIA's MIG User Guide and published `nvidia-smi mig -lgip` and `-lgipp` listings. A real GPU is asked
itself; of these tables it needs only the starts, which NVML tells of no GPU whose MIG mode is off.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysched.core.mig import Cut, Geometry, Profile

ROUND = 128
"""MiB to which the memory of a profile without a published figure is rounded down."""


@dataclass(frozen=True, slots=True)
class Row:
    """A profile on a grid: NVML's id of it, compute slices, where it may start, memory slices, how many of it
    fit at once, and what its name has at the end."""

    id: int
    slices: int
    starts: tuple[int, ...]
    size: int
    most: int
    extra: str = ""


SEVENTHS = (
    Row(19, 1, (0, 1, 2, 3, 4, 5, 6), 1, 7),
    Row(20, 1, (0, 1, 2, 3, 4, 5, 6), 1, 1, "+me"),
    Row(15, 1, (0, 2, 4, 6), 2, 4),
    Row(14, 2, (0, 2, 4), 2, 3),
    Row(9, 3, (0, 4), 4, 2),
    Row(5, 4, (0,), 4, 1),
    Row(0, 7, (0,), 8, 1),
)
"""A100, H100, H200, B200 and their kin: seven compute slices, eight of memory."""

QUARTERS = (
    Row(14, 1, (0, 1, 2, 3), 1, 4),
    Row(21, 1, (0, 1, 2, 3), 1, 1, "+me"),
    Row(5, 2, (0, 2), 2, 2),
    Row(6, 2, (0, 2), 2, 1, "+me"),
    Row(0, 4, (0,), 4, 1),
)
"""A30: four of each."""

TWELFTHS = (
    Row(14, 1, (0, 3, 6, 9), 3, 4),
    Row(21, 1, (0, 3, 6, 9), 3, 1, "+me"),
    Row(47, 1, (0, 3, 6, 9), 3, 4, "+gfx"),
    Row(65, 1, (0, 3, 6, 9), 3, 1, "+me.all"),
    Row(67, 1, (0, 3, 6, 9), 3, 4, "-me"),
    Row(5, 2, (0, 6), 6, 2),
    Row(35, 2, (0, 6), 6, 2, "+gfx"),
    Row(64, 2, (0, 6), 6, 1, "+me.all"),
    Row(66, 2, (0, 6), 6, 2, "-me"),
    Row(0, 4, (0,), 12, 1),
    Row(32, 4, (0,), 12, 1, "+gfx"),
)
"""RTX PRO 6000 Blackwell: four compute slices, twelve of memory."""

GRIDS = (SEVENTHS, QUARTERS, TWELFTHS)

Sizes = dict[int, tuple[int, int | None]]
"""Gigabytes in the name and MiB of a profile, by its memory slices; None: not published."""

CUT: dict[str, tuple[tuple[Row, ...], Sizes]] = {
    "A30": (QUARTERS, {1: (6, 5952), 2: (12, 11968), 4: (24, 24000)}),
    "A100-40GB": (SEVENTHS, {1: (5, 4864), 2: (10, 9856), 4: (20, 19968), 8: (40, 40192)}),
    "A100-80GB": (SEVENTHS, {1: (10, 9728), 2: (20, 19968), 4: (40, 40192), 8: (80, 80896)}),
    "B200": (SEVENTHS, {1: (23, 20992), 2: (45, 45312), 4: (90, None), 8: (180, None)}),
    "B300": (SEVENTHS, {1: (34, None), 2: (67, None), 4: (135, None), 8: (269, None)}),
    "GB200": (SEVENTHS, {1: (23, 22528), 2: (47, 46592), 4: (93, None), 8: (186, None)}),
    "GB300": (SEVENTHS, {1: (35, None), 2: (70, None), 4: (139, None), 8: (278, None)}),
    "GH200-96GB": (SEVENTHS, {1: (12, 11264), 2: (24, 23552), 4: (48, 47616), 8: (96, 95232)}),
    "H20-96GB": (SEVENTHS, {1: (12, None), 2: (24, None), 4: (48, None), 8: (96, None)}),
    "H20-141GB": (SEVENTHS, {1: (18, None), 2: (35, None), 4: (71, None), 8: (141, None)}),
    "H100-80GB": (SEVENTHS, {1: (10, 9984), 2: (20, 20096), 4: (40, 40448), 8: (80, 81152)}),
    "H100-94GB": (SEVENTHS, {1: (12, 11008), 2: (24, 22144), 4: (47, 47488), 8: (94, 95360)}),
    "H200-141GB": (SEVENTHS, {1: (18, 16384), 2: (35, 33024), 4: (71, 71168), 8: (141, 143360)}),
    "RTX-PRO-6000": (TWELFTHS, {3: (24, 24192), 6: (48, 48512), 12: (96, 97408)}),
}
"""The models with MIG, by their names in `models.MODELS`."""


def geometry_of(model: str, memory: int) -> Geometry | None:
    """What a simulated GPU of this model with `memory` MiB can be cut into; None: it has no MIG."""
    if model not in CUT:
        return None
    grid, sizes = CUT[model]
    cells = max(row.starts[-1] + row.size for row in grid)
    profiles = tuple(_profile(row, *sizes[row.size], memory, cells) for row in grid)
    return Geometry(cells, max(row.slices for row in grid), profiles, switchable=True)


def _profile(row: Row, gigabytes: int, published: int | None, memory: int, cells: int) -> Profile:
    name = f"{row.slices}g.{gigabytes}gb{row.extra}"
    part = memory * row.size // cells // ROUND * ROUND
    size = part if published is None else published
    return Profile(row.id, name, row.slices, size, row.starts, row.size, row.most)


def starts_of(slices: dict[int, int]) -> dict[int, Row] | None:
    """The rows of the grid that has all these profiles: compute slices by profile id. None: no grid that is
    known here."""
    for grid in GRIDS:
        rows = {row.id: row for row in grid}
        if slices and all(id in rows and rows[id].slices == count for id, count in slices.items()):
            return rows
    return None


def named(geometry: Geometry, cut: Cut) -> str:
    """A cut as people read it: `the MIG instance 3g.40gb at 4`."""
    names = {profile.id: profile.name for profile in geometry.profiles}
    return f"the MIG instance {names.get(cut.profile, f'of profile {cut.profile}')} at {cut.start}"
