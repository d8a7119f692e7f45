"""Tables that the tools return: `cli` draws them, others have markdown."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells of text under the names of their columns."""

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  title: str = ''
  words: int = 1  # leading columns of words; the others hold numbers

  def markdown(self) -> str:
    """Returns the table as GitHub shows it.

    >>> print(Table(['system', 'tau'], [['ar', '1.00']]).markdown())
    | system | tau |
    |---|---:|
    | ar | 1.00 |
    """
    marks = ['---'] * self.words + ['---:'] * (len(self.columns) - self.words)
    lines = [_line(self.columns), f'|{"|".join(marks)}|']
    lines += map(_line, self.rows)
    return '\n'.join([f'{self.title}:\n'] * bool(self.title) + lines)


def _line(cells: Sequence[str]) -> str:
  safe = (' '.join(cell.replace('|', r'\|').split()) for cell in cells)
  return f'| {" | ".join(safe)} |'
