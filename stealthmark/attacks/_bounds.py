"""What strengths an attack allows."""

from pydantic import AfterValidator


def between(low: float, high: float, what: str) -> AfterValidator:
    """Strengths above `low` and below `high`, both left out; `what` says what they are, for the error."""

    def check(values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(low < value < high for value in values):
            raise ValueError(f"strengths are {what}, above {low:g} and below {high:g}")
        return values

    return AfterValidator(check)


def whole(low: int, high: int, what: str) -> AfterValidator:
    """Whole strengths from `low` to `high`, both included; `what` says what they are, for the error."""

    def check(values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(low <= value <= high and value.is_integer() for value in values):
            raise ValueError(f"strengths are {what}: whole numbers from {low} to {high}")
        return values

    return AfterValidator(check)
