"""Which GPUs `CUDA_VISIBLE_DEVICES` leaves, and the index that Ray and CUDA give each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def visible(uuids: Sequence[str | None], variable: str | None) -> Iterator[tuple[int, str]]:
    """Each visible GPU as (index, UUID), in CUDA's order.

    `uuids` are the node's GPUs in the driver's order, None for one that can't be read; `variable` is the
    value of CUDA_VISIBLE_DEVICES, None where it is not set. The index is the place in the list, which is
    how Ray and CUDA count. An entry is a number, or the UUID or an unambiguous beginning of it. As in CUDA,
    an entry that names no GPU hides all after it, and no GPU comes twice. MIG devices (`MIG-...`) are no
    whole GPUs; they keep their place in the count.

    Numbers mean the driver's order (that of the PCI bus), which is CUDA's too on a node with equal GPUs or
    with CUDA_DEVICE_ORDER=PCI_BUS_ID; on others name GPUs by UUID.
    """
    entries = [str(place) for place in range(len(uuids))] if variable is None else variable.split(",")
    seen: set[str] = set()
    for index, entry in enumerate(entry.strip() for entry in entries):
        if entry.upper().startswith("MIG-"):
            continue
        uuid, exists = _named(entry, uuids)
        if not exists:
            return
        if uuid is not None and uuid not in seen:
            seen.add(uuid)
            yield index, uuid


def _named(entry: str, uuids: Sequence[str | None]) -> tuple[str | None, bool]:
    """The UUID that an entry stands for, None if it can't be read, and whether there is such a GPU."""
    if entry.isdecimal():
        place = int(entry)
        return (uuids[place], True) if place < len(uuids) else (None, False)
    matches = [uuid for uuid in uuids if uuid is not None and uuid.lower().startswith(entry.lower())]
    if entry.lower().startswith("gpu-") and len(matches) == 1:
        return matches[0], True
    return None, False
