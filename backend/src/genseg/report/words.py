"""Numbers said in words that a clinician can act on."""


def count(n: int, noun: str) -> str:
    """1 scan, 2 scans."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listing(names: list[str], limit: int = 4) -> str:
    """'a', 'a and b', 'a, b, c and 5 more'."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def dice(value: float) -> str:
    """What an overlap means for the work that is left."""
    if value >= 0.9:
        return "very close to the reference"
    if value >= 0.8:
        return "close to the reference; small corrections"
    if value >= 0.7:
        return "a draft to correct"
    return "a rough draft" if value >= 0.5 else "poor: expect to redraw"


def uncertainty(value: object) -> tuple[str, str]:
    """0 (sure) .. 1 (unsure) → (words, kind of chip)."""
    if not isinstance(value, (int, float)):
        return "not measured", "plain"
    if value < 0.15:
        return "the model is sure", "good"
    return ("the model is fairly sure", "plain") if value < 0.35 else ("the model is unsure", "warn")


def agreement(value: float) -> str:
    """Dice between the drawn mask and what the segmenter sees in the synthetic image."""
    if value >= 0.8:
        return "good: the segmenter finds in this image what was drawn"
    return (
        "fair: the segmenter finds part of what was drawn"
        if value >= 0.6
        else "low: the segmenter finds little of what was drawn"
    )


def similarity(value: float, near_copy: bool) -> str:
    """Correlation to the nearest training image."""
    if near_copy:
        return "almost a copy of this scan"
    if value >= 0.8:
        return "the same layout as this scan"
    return "resembles this scan" if value >= 0.5 else "clearly different from every training scan"
