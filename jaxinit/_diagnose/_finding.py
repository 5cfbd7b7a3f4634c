"""One fault of a start."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
      fault: "overflow", "not finite", "zero weights", "blank batch", "equal samples", "equal units", "dead",
        "saturated", "one-hot attention", "outlier", "exploding signal", "vanishing signal", "scale",
        "exploding gradient", "vanishing gradient", "no gradient" or "ordered".
      layer: the layer where it begins.
      what: the fault in words.
      remedy: the call that would mend it; or, where no start does, what else would.
    """

    fault: str
    layer: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} Try {self.remedy}."
