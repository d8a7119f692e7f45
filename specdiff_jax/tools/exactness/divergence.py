"""Where two decodings of one prompt part, and whether rounding explains it.

Under rule M a drafted system gives the tokens of plain decoding, up to the
rounding of the verifier's logits: passes of other shapes sum in another order.
So a first difference may only be a near-tie that rounding flipped: the
verifier's margin there has to be within what the logits move between the two
shapes.

The noise is measured on the run's own texts: the largest move of a margin
between a likely token and the best; see `reading.py`.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.tools.exactness import reading


@dataclasses.dataclass(frozen=True)
class Divergence:
  """The first difference of one prompt's completion."""

  number: int  # of the request
  index: int  # in the completion
  expected: int | None  # plain decoding's token; None past its end
  got: int | None  # the system's
  top2: float  # margin of the verifier's two largest scores, noise included
  margin: float  # by how much its best score beats the worse of the two tokens
  allowed: float  # the margin that rounding explains

  @property
  def near_tie(self) -> bool:
    """Whether rounding explains it; never where anything is NaN."""
    return self.margin <= self.allowed < math.inf


@dataclasses.dataclass(frozen=True)
class Report:
  """What a comparison showed."""

  tokens: int  # compared: up to the first difference of each prompt
  divergences: tuple[Divergence, ...]
  noise: float | None  # largest move of a margin; None if nothing differs

  @property
  def worst_margin(self) -> float | None:
    """The largest margin; None if nothing differs."""
    return max((d.margin for d in self.divergences), default=None)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
  """Returns the first index at which a and b differ, or None.

  first_difference([1, 2, 3], [1, 2]) == 2
  """
  for index, (x, y) in enumerate(zip(a, b)):
    if x != y:
      return index
  return None if len(a) == len(b) else min(len(a), len(b))


def kept(
  logits: np.ndarray, settings: request_lib.Settings, slack: float = 0.0
) -> np.ndarray:
  """Returns [V]: what top-k and top-p keep of logits [V] over temperature.

  With slack > 0 tokens count that may be kept where differences of logits move
  by so much; with slack < 0 only those that are kept however they move.
  """
  order = np.argsort(-logits, kind='stable')
  ordered = logits[order].astype(np.float64)
  ahead = np.arange(logits.size)  # ties break to the lowest id
  if slack:  # tokens that stay ahead; with slack < 0 that may come ahead
    ahead = np.searchsorted(-ordered, -ordered - slack) - (slack < 0)
  p = np.exp(ordered - ordered[0])
  if settings.top_k:
    p[settings.top_k :] = 0
  mass = np.concatenate([[0.0], np.cumsum(p / p.sum())])[ahead]
  keep = np.ones(logits.size, bool)
  if settings.top_k:
    keep &= ahead < settings.top_k
  if settings.top_p < 1:
    keep &= mass * np.exp(-slack) < settings.top_p
  result = np.empty(logits.size, bool)
  result[order] = keep
  return result


def margins(
  logits: np.ndarray,
  noise: np.ndarray,
  tokens: Sequence[int],
  settings: request_lib.Settings,
  allowed: float,
) -> tuple[float, float]:
  """Returns (top-2 margin, margin of the worse of `tokens`), in nats.

  The scores are log p + g of `core.sampling`, p after temperature, top-k and
  top-p; at temperature 0 they are the logits.

  Args:
    logits: [V] of the verifier.
    noise: [V] g of the position.
    tokens: that were chosen.
    settings: temperature, top-k and top-p.
    allowed: how far differences of logits / temperature move: where this takes
      a token across the edge of top-k or top-p, it counts as inside.
  """
  if not np.isfinite(logits).all():
    return math.nan, math.nan
  scores, inside = logits, np.ones(logits.size, bool)
  sure = possible = inside
  if settings.temperature > 0:
    scaled = logits / np.float32(settings.temperature)
    scores = scaled + noise
    inside = kept(scaled, settings)
    sure = kept(scaled, settings, -allowed)
    possible = kept(scaled, settings, allowed)
  first, second = np.sort(np.where(inside, scores, -np.inf))[::-1][:2]
  best = np.max(scores, where=sure, initial=-np.inf)
  worst = min(scores[t] if possible[t] else -np.inf for t in tokens)
  return float(first - second), float(max(best - worst, 0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """What the verifier makes of differences from plain decoding.

  Attributes:
    plain: plain decoding.
    passes: shapes of its passes and of the system's.
  """

  plain: session_lib.Session
  passes: reading.Passes

  def compare(
    self,
    requests: Sequence[request_lib.Request],
    expected: Sequence[Sequence[int]],
    got: Sequence[Sequence[int]],
  ) -> Report:
    """Compares completions with plain decoding's, prompt by prompt."""
    pairs = list(zip(expected, got, strict=True))
    places = [first_difference(*pair) for pair in pairs]
    tokens = sum(
      len(a) if i is None else i + 1 for (a, _), i in zip(pairs, places)
    )
    if all(place is None for place in places):
      return Report(tokens, (), None)
    noise, logits = self.read(requests, expected, places)
    allowed = noise / (self.plain.settings.temperature or 1.0)
    found = [
      self._divergence(request, pair, place, row, allowed)
      for request, pair, place, row in zip(requests, pairs, places, logits)
      if place is not None
    ]
    return Report(tokens, tuple(found), noise)

  def read(
    self,
    requests: Sequence[request_lib.Request],
    texts: Sequence[Sequence[int]],
    places: Sequence[int | None],
  ) -> tuple[float, list[np.ndarray]]:
    """Returns the noise over all texts, and each text's logits [V] at its place.

    A place is an index in the completion; the logits are plain decoding's.
    """
    noise, logits = 0.0, []
    for first in range(0, len(requests), self.plain.batch):
      group = slice(first, first + self.plain.batch)
      moved, rows = self._read(requests[group], texts[group], places[group])
      noise = float(np.maximum(noise, moved))  # keeps a NaN
      logits.extend(rows)
    return noise, logits

  def _read(self, requests, texts, places):
    """Reads one batch, padded with rows that count nowhere."""
    longest = max(len(request.prompt) for request in requests)
    bucket = request_lib.bucket_for(longest, self.plain.buckets)
    engine, batch = self.plain.engine, self.plain.batch
    tokens = np.zeros((batch, bucket + engine.max_new_tokens), int)
    prompt, length, at = np.ones((3, batch), int)
    for row, (request, text, place) in enumerate(zip(requests, texts, places)):
      whole = [*request.prompt, *text]
      tokens[row, : len(whole)] = whole
      prompt[row], length[row] = len(request.prompt), len(whole)
      at[row] = len(request.prompt) + (place or 0)
    moved, logits = reading.read(
      engine.verifier,
      bucket,
      self.passes,
      self.plain.params,
      *(x.astype(np.int32) for x in (tokens, prompt, length, at)),
    )
    return np.asarray(moved).max(), list(np.asarray(logits)[: len(texts)])

  def _divergence(self, request, pair, place, logits, allowed):
    """Returns the divergence at a place."""
    settings = self.plain.settings
    position = len(request.prompt) + place
    noise = sampling_lib.gumbel(
      sampling_lib.request_noise(
        settings.seed, *sampling_lib.halves([request.number])
      ),
      jnp.asarray([[position]]),
      logits.size,
    )
    tokens = [int(x[place]) if place < len(x) else None for x in pair]
    chosen = [token for token in tokens if token is not None]
    top2, margin = margins(
      logits, np.asarray(noise)[0, 0], chosen, settings, allowed
    )
    if None in tokens:  # one went on where the other had ended
      margin = math.inf
    return Divergence(
      request.number, place, tokens[0], tokens[1], top2, margin, allowed
    )
