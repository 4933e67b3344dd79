"""The canonical form of numbers."""

from __future__ import annotations

from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction


# Integers with more trailing zeros are written `{digits}e{zeros}`: `1e999999999` must not become a gigabyte of text.
_MAX_ZEROS = 10_000
# Numbers from 1e1000000000 up count as infinite, and their inverses as zero.
_MAX_EXPONENT = 10**9

# Our own contexts, because users may change the context of their thread.
WIDE = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_NOISE_FREE = Context(prec=12, rounding=ROUND_HALF_UP, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_SIGNIFICANT = Context(prec=4, rounding=ROUND_HALF_UP, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_CENT = Decimal("0.01")


def format_decimal(number: Decimal) -> str:
    """Return the canonical form of a decimal number."""
    if number.is_nan():
        return "nan"
    if number.is_zero() or number.adjusted() <= -_MAX_EXPONENT:
        return "0"
    if number.is_infinite() or number.adjusted() >= _MAX_EXPONENT:
        return "inf" if number > 0 else "-inf"
    if _is_integer(number):
        return _format_integer(number)
    number = _NOISE_FREE.plus(number)
    if number.copy_abs() >= 1:
        rounded = _NOISE_FREE.quantize(number, _CENT)
    else:
        rounded = _SIGNIFICANT.plus(number)
        rounded = _SIGNIFICANT.quantize(rounded, Decimal((0, (1,), rounded.adjusted() - 3)))
    # 1.999 rounds to 2.00, which is an integer.
    return _format_integer(rounded) if _is_integer(rounded) else str(rounded).lower()


def format_fraction(fraction: Fraction) -> str:
    """Return the canonical form of a fraction."""
    nearest = round(fraction)
    if abs(fraction - nearest) * 10**9 <= abs(nearest):
        return format_decimal(Decimal(nearest))
    return format_decimal(WIDE.divide(Decimal(fraction.numerator), Decimal(fraction.denominator)))


def _is_integer(number: Decimal) -> bool:
    nearest = number.to_integral_value(ROUND_HALF_EVEN)
    difference = WIDE.abs(WIDE.subtract(number, nearest))
    return difference <= WIDE.multiply(WIDE.abs(nearest), Decimal("1e-9"))


def _format_integer(number: Decimal) -> str:
    number = number.to_integral_value(ROUND_HALF_EVEN)
    if number.adjusted() < _MAX_ZEROS:
        return format(number, "f")
    sign, digits, exponent = number.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    zeros = exponent + len(digits) - len(kept)
    return ("-" if sign else "") + kept + ("0" * zeros if zeros <= _MAX_ZEROS else f"e{zeros}")
