"""The label table: the one place that decides which number means which structure.

Files may use any integers (0/255, gaps, 60 labels). Inside the backend a label map holds the
table's index: 0 is background, 1..K the structures in ascending order of their file value.
"""

from typing import Self

import numpy as np
from pydantic import BaseModel, model_validator

# Twelve hues that stay apart on grey images and for most colour-blind readers.
PALETTE = [
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (148, 103, 189), (140, 86, 75), (23, 190, 207), (188, 189, 34), (255, 152, 150),
]  # fmt: skip


class Label(BaseModel):
    """One structure: the value it has in files, its name, RGB colour (0..255) and terminology."""

    value: int
    name: str
    color: tuple[int, int, int]
    terminology: str | None = None


class LabelTable(BaseModel):
    """Structures in index order; `labels[0]` is the background."""

    labels: list[Label]

    @model_validator(mode="after")
    def _values_and_names_are_unique(self) -> Self:
        for what in ("value", "name"):
            seen = [getattr(label, what) for label in self.labels]
            if len(set(seen)) != len(seen):
                raise ValueError(f"two labels share the same {what}: {seen}")
        return self

    @classmethod
    def from_names(
        cls,
        names: dict[int, str],
        colors: dict[int, tuple[int, int, int]] | None = None,
        terminologies: dict[int, str] | None = None,
    ) -> "LabelTable":
        """Build from {file value: name}; value 0 (added if missing) is the background."""
        names = {0: "background", **names}
        colors, terminologies = colors or {}, terminologies or {}
        labels = [
            Label(
                value=value,
                name=names[value],
                color=colors.get(value, (0, 0, 0) if value == 0 else PALETTE[(i - 1) % len(PALETTE)]),
                terminology=terminologies.get(value),
            )
            for i, value in enumerate(sorted(names, key=lambda v: (v != 0, v)))
        ]
        return cls(labels=labels)

    @property
    def structures(self) -> list[Label]:
        """The labels without the background, in index order (index of `structures[i]` is i + 1)."""
        return self.labels[1:]

    def __len__(self) -> int:
        """Number of classes, the background included."""
        return len(self.labels)

    def unknown_values(self, values: np.ndarray) -> list[int]:
        """The values of a label file (any shape, integers) that the table does not know."""
        known = [label.value for label in self.labels]
        return sorted(int(v) for v in np.unique(values) if v not in known)

    def to_index(self, values: np.ndarray) -> np.ndarray:
        """File values (any shape) → indices, uint8 (uint16 beyond 255 classes). Unknown values raise ValueError."""
        unknown = self.unknown_values(values)
        if unknown:
            raise ValueError(f"label values {unknown} are not in the label table")
        order = np.argsort([label.value for label in self.labels])
        sorted_values = np.array([label.value for label in self.labels])[order]
        dtype = np.uint8 if len(self) <= 256 else np.uint16
        return order.astype(dtype)[np.searchsorted(sorted_values, values)]

    def to_value(self, indices: np.ndarray) -> np.ndarray:
        """Indices (any shape) → file values in the smallest integer type that holds them all."""
        values = np.array([label.value for label in self.labels])
        low, high = values.min(), values.max()
        dtype = np.uint8 if low >= 0 and high <= 255 else np.int16 if high < 2**15 else np.int32
        return values.astype(dtype)[indices]
