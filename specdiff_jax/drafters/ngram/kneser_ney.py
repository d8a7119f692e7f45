"""Interpolated Kneser-Ney (Kneser & Ney 1995, Chen & Goodman 1999) of token ids.

Of n-grams u w, u' being u without its first token:

  p(w | u) = max(c(u w) - D, 0) / c(u) + D N(u) / c(u)  p(w | u')

c counts occurrences at the highest order and, below it, the different tokens
that stand before; c(u) sums c(u w) over w, of which N(u) differ. Each order has
its D = n1 / (n1 + 2 n2), from the n-grams with c = 1 and 2. The unigrams are
interpolated with 1 / V.
"""

from collections.abc import Sequence

import numpy as np

from specdiff_jax.drafters.ngram import model

_DISCOUNT = 0.5  # where no n-gram has the count 1, or none 2


def fit(
  texts: Sequence[Sequence[int]], vocab_size: int, order: int
) -> list[model.Level]:
  """Returns the levels of a model of texts in tokens.

  A text's first tokens follow `order` - 1 marks of its beginning, which is the
  id `vocab_size`; nothing stands for its end.
  """
  mark = np.array([vocab_size])
  stream = np.concatenate([x for text in texts for x in (mark, text)])
  stream = stream.astype(np.int64)
  begins = stream == vocab_size
  # Each position's n-gram, as an entry of its level. That of a mark is one of
  # marks alone.
  entry, levels = stream, []
  size = vocab_size + 1
  level = np.zeros(size, np.int64), np.arange(size), np.zeros(size, np.int64)
  for _ in range(order - 1):
    above = np.where(begins, entry[0], np.roll(entry, 1))
    keys, place, following = np.unique(
      above * size + stream, return_index=True, return_inverse=True
    )
    # Continuations: which shorter n-grams the different longer ones end in.
    count = np.bincount(entry[place[~begins[place]]], minlength=level[0].size)
    levels.append((*level[:2], level[2], count))
    level = keys // size, keys % size, entry[place]
    entry = following
  count = np.bincount(entry[~begins], minlength=level[0].size)
  levels.append((*level, count))
  return _estimated(levels, vocab_size)


def _estimated(levels, vocab_size: int) -> list[model.Level]:
  """Returns levels of (parent, token, entry of its end one below, count)."""
  found: list[model.Level] = []
  log_of = lambda x: np.log(x, where=x > 0, out=np.full(x.shape, -np.inf))
  p = np.full(1, 1 / vocab_size)
  for parent, token, ending, count in levels:
    contexts = found[-1].token.size if found else 1
    real = token < vocab_size
    used = (count > 0) & real
    once, twice = (count[used] == 1).sum(), (count[used] == 2).sum()
    d = once / (once + 2 * twice) if once and twice else _DISCOUNT
    total = np.bincount(parent, count * used, contexts)
    differ = np.bincount(parent[used], minlength=contexts)
    left = np.divide(d * differ, total, out=np.ones(contexts), where=total > 0)
    share = np.divide(
      np.maximum(count - d, 0) * used,
      total[parent],
      out=np.zeros(count.size),
      where=total[parent] > 0,
    )
    if found:
      found[-1] = found[-1]._replace(backoff=log_of(left).astype(np.float32))
    p = np.where(real, share + left[parent] * p[ending], 0)
    found.append(
      model.Level(
        parent.astype(np.int32),
        token.astype(np.int32),
        log_of(p).astype(np.float32),
        np.zeros(count.size, np.float32),
      )
    )
  return found
