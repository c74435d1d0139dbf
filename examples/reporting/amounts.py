"""Numbers as people read them, in tables and sentences."""

from reporting.transfer import Spread

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def percent(value: Spread | None) -> str:
    """Writes a fraction as a percentage."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.2f}{_plus_minus(value)} %"


def points(value: Spread | None, sign: str, zero: str = "0") -> str:
    """Writes a difference of fractions in points.

    Args:
        value: The difference.
        sign: `"+"` to write it for positive ones too, or `""`.
        zero: What exactly none is written as.
    """
    if value is None:
        return "-"
    if value.mean == 0.0 and not value.deviation:
        return zero
    return f"{100 * value.mean:{sign}.2f}{_plus_minus(value)}"


def whole(value: Spread | None) -> str:
    """Writes the nearest whole number."""
    return "-" if value is None else f"{round(value.mean):,}"


def size(value: Spread | None) -> str:
    """Writes a number of bytes with three digits, in powers of 1000."""
    if value is None:
        return "-"
    count = round(value.mean)
    if count < 1000:
        return f"{count} B"
    # Rounded first, so that 999,999 is 1.00 MB and not 1000 kB.
    digits, power = f"{count:.2e}".split("e")
    unit, place = divmod(int(power), 3)
    return f"{float(digits) * 10**place:.{2 - place}f} {_UNITS[unit]}"


def _plus_minus(value: Spread) -> str:
    return "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
