"""Tables that the tools return and `cli` draws."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells of text under the names of their columns."""

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  title: str = ''
  words: int = 1  # leading columns of words; the others hold numbers
