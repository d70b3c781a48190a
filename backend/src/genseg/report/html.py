"""Small helpers that make HTML: everything that comes from a run is escaped on its way in."""

import html
from collections.abc import Iterable, Sequence

from genseg.labels import Label

VOID = ("img", "br", "path", "line", "polyline", "circle", "rect")


class Html(str):
    """Text that is HTML already and is not escaped again."""


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children are escaped unless they are Html; `class_` and `stroke_width` become class, stroke-width."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{parts}/>")
    return Html(f"<{name}{parts}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children one after another; None is nothing."""
    shown = (child for child in children if child is not None)
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in shown))


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], numeric: int = 1, caption: str | None = None
) -> Html:
    """A table that scrolls sideways on narrow screens; columns from `numeric` on are aligned as numbers."""

    def cells(kind: str, row: Sequence[object]) -> Html:
        return tag(
            "tr",
            *(
                cell if isinstance(cell, Html) and cell.startswith(("<td", "<th")) else
                tag(kind if i else "th", cell, class_="number" if i >= numeric else None,
                    scope=("col" if kind == "th" else "row") if kind == "th" or i == 0 else None)
                for i, cell in enumerate(row)
            ),
        )  # fmt: skip

    content = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", cells("th", head)),
        tag("tbody", *(cells("td", row) for row in rows)),
    )
    return tag("div", content, class_="scroll")


def number(value: object, digits: int = 2) -> str:
    """A number for people; – where there is none (None, NaN, infinite, or not a number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–"
    return f"{value:.{digits}f}" if abs(value) < float("inf") else "–"  # NaN compares false


def millilitres(value: object) -> str:
    """A volume with the digits that mean something."""
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def named(label: Label, more: str = "") -> Html:
    """The colour of a label as a small square, and its name."""
    square = tag("span", class_="swatch", style=f"background:rgb{tuple(label.color)}", aria_hidden="true")
    return tag("span", square, tag("span", label.name + more), class_="label")
