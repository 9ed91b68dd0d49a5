"""Sizes, durations, fractions and counts, from what people write to the whole numbers of the core.

| written | means |
|---|---|
| `10GB`, `1.5GiB`, `512MiB` | bytes: kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB powers of 1024 |
| `10Gi` | the same as `10GiB` |
| `10G`, `10` | refused: say which one is meant |
| `90s`, `15m`, `2h`, `1d`, `500ms`, `1h30m`, `1.5h` | a duration |
| `0.25`, `1/4`, `25%` | the same quarter |

Upper and lower case of a size's unit do not matter, nor do quotes around a number. All functions raise
ValueError with a sentence for the user; the caller puts file, line and field in front of it.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from raysched.specs.problems import quoted

WHOLE = 10_000
"""A whole GPU, or a whole CPU core, in ten-thousandths."""

MIB = 2**20

_MOST = 10**15
"""What no unit here passes: JSON and every database hold such a number exactly."""

_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})"
_SIZE = re.compile(rf"({_NUMBER})\s*([a-z]*)", re.IGNORECASE)
_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(r"\s*".join(rf"(?:({_NUMBER})\s*{unit})?" for unit in _MILLISECONDS))
_RATIO = re.compile(r"([0-9]{1,9})\s*/\s*([0-9]{1,9})")
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")


def parse_size(value: object) -> int:
    """MiB, rounded up, of a size with its unit, such as `10GB` (9537) or `10GiB` (10240)."""
    text = _text(value, "a size such as 10GB")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a size: write a number and a unit, such as 10GB or 10GiB")
    number, unit = match.groups()
    if unit.lower() not in _BYTES:
        raise ValueError(_wrong_size_unit(number, unit))
    mebibytes = _bounded(math.ceil(Fraction(number) * _BYTES[unit.lower()] / MIB))
    if mebibytes == 0:
        raise ValueError("must be more than 0")
    return mebibytes


def _wrong_size_unit(number: str, unit: str) -> str:
    letter = unit.upper()
    if letter == "":
        return f"{number} has no unit: write {number}GB (10^9 bytes) or {number}GiB (2^30 bytes)"
    if letter in ("K", "M", "G", "T"):
        power = "KMGT".index(letter) + 1
        decimal = "kB" if letter == "K" else f"{letter}B"
        return (
            f"{number}{unit} could be two things: write {number}{decimal} (10^{3 * power} bytes) "
            f"or {number}{letter}iB (2^{10 * power} bytes)"
        )
    return f"{quoted(unit)} is not a unit of size: use kB, MB, GB, TB, KiB, MiB, GiB or TiB"


def format_size(mebibytes: int) -> str:
    """The size in the shortest form that `parse_size` reads back as the same number."""
    for power, unit in ((2, "TiB"), (1, "GiB")):
        if mebibytes and mebibytes % 1024**power == 0:
            return f"{mebibytes // 1024**power}{unit}"
    return f"{mebibytes}MiB"


def parse_duration(value: object) -> int:
    """Milliseconds, rounded up, of a duration with its units, such as `90s` or `1h30m`."""
    text = _text(value, "a duration such as 15m")
    if re.fullmatch(_NUMBER, text):
        raise ValueError(f"{text} has no unit: write {text}s (seconds) or {text}m (minutes)")
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(
            f"{quoted(text)} is not a duration: write numbers with d, h, m, s or ms, such as 90s or 1h30m"
        )
    parts = zip(match.groups(), _MILLISECONDS.values(), strict=True)
    return _bounded(math.ceil(sum(Fraction(number) * unit for number, unit in parts if number)))


def format_duration(milliseconds: int) -> str:
    """The duration as `parse_duration` reads it back: `1h30m`."""
    text = ""
    for unit, length in _MILLISECONDS.items():
        count, milliseconds = divmod(milliseconds, length)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_fraction(value: object) -> int:
    """Ten-thousandths, to the nearest, of a part of a GPU: `0.25`, `1/4` and `25%` are all 2500."""
    number = _part(value)
    if number > 1:
        raise ValueError(f"{_shown(value)} is more than one GPU: write gpus: for several")
    share = _nearest(number * WHOLE)
    if number <= 0:
        raise ValueError(f"must be more than 0 and at most 1, not {_shown(value)}")
    if share == 0:
        raise ValueError(f"{_shown(value)} is less than the least share, 0.0001")
    return share


def _part(value: object) -> Fraction:
    if isinstance(value, str):
        text = value.strip()
        if ratio := _RATIO.fullmatch(text):
            if int(ratio[2]) == 0:
                raise ValueError(f"{text} divides by 0")
            return Fraction(int(ratio[1]), int(ratio[2]))
        if text.endswith("%"):
            return _number(text[:-1].rstrip(), "a fraction such as 0.25, 1/4 or 25%") / 100
    return _number(value, "a fraction such as 0.25, 1/4 or 25%")


def format_fraction(ten_thousandths: int) -> float:
    """The number that `parse_fraction` and `parse_cpus` read back as the same."""
    return ten_thousandths / WHOLE


def parse_cpus(value: object) -> int:
    """Ten-thousandths of a core, to the nearest: `4` is 40000, `0.5` is 5000; 0 reserves none."""
    number = _number(value, "a number of cores such as 4 or 0.5")
    if number < 0:
        raise ValueError(f"must be 0 or more, not {_shown(value)}")
    ten_thousandths = _bounded(_nearest(number * WHOLE))
    if number and not ten_thousandths:
        raise ValueError(f"{_shown(value)} is less than the least part of a core, 0.0001")
    return ten_thousandths


def parse_gpus(value: object) -> int:
    """How many GPUs: a whole number."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and (typed := re.fullmatch(r"([A-Za-z][\w.-]*):([0-9]+)", text)):
        raise ValueError(f"{quoted(text)} is two things: write gpus: {typed[2]} and gpu_type: {typed[1]}")
    if (part := _part_of_one(text)) is not None:
        raise ValueError(_wrong_count(part, _shown(text)))
    return parse_whole_number(text)


def _part_of_one(value: object) -> Fraction | None:
    """The number, if it is written as a fraction."""
    if isinstance(value, bool) or not any(sign in str(value) for sign in "./%"):
        return None
    try:
        return _part(value)
    except ValueError:
        return None


def _wrong_count(number: Fraction, shown: str) -> str:
    if number.denominator == 1:
        return f"must be a whole number without a decimal point: write gpus: {number}"
    if 0 < number < 1:
        return (
            f"must be a whole number, not {shown}: for part of a GPU write gpus: 1 with gpu_fraction: {shown}"
        )
    return f"must be a whole number, not {shown}: parts of a GPU are asked for with gpu_fraction"


def parse_whole_number(value: object) -> int:
    """An integer, in decimal digits without leading zeros."""
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {_shown(value)}")
    return _bounded(value)


def _number(value: object, wanted: str) -> Fraction:
    if isinstance(value, str) and re.fullmatch(rf"-?{_NUMBER}", value.strip()):
        return Fraction(value.strip())
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    if isinstance(value, float) and math.isfinite(value):
        return Fraction(repr(float(value)))
    raise ValueError(f"must be {wanted}, not {_shown(value)}")


def _bounded(number: int) -> int:
    if abs(number) > _MOST:
        raise ValueError("is far too large")
    return number


def _nearest(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def _text(value: object, wanted: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be {wanted}, not {_shown(value)}")
    return str(value).strip()


def _shown(value: object) -> str:
    """The value as the user wrote it: `true`, not `True`; `0.5`, not `'0.5'`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and re.fullmatch(r"[\w.+/%-]{1,40}", value):
        return value
    if isinstance(value, list | tuple | dict):
        return "a mapping" if isinstance(value, dict) else "a list"
    return quoted(value)
