"""Numbers in words, for terminal and report alike."""


def duration(seconds: float) -> str:
    """Seconds → '42 s', '4 min 5 s', '2 h 10 min'; below 0 counts as 0."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def times(numbers: tuple) -> str:
    """(2, 0.5) → '2 × 0.5'."""
    return " × ".join(f"{number:g}" for number in numbers)
