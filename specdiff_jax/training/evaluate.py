"""Acceptance on held-out trajectories, in numpy.

Three curves, never confused (all start at slot j = 1):

  agree_j  slot j agrees with the verifier's trajectory, unconditionally
  cond_j   slot j agrees, given that all slots before it do
  surv_j   slots 1 to j all agree: Pr(accepted >= j)

`accepted` = sum_j surv_j is the expected count of accepted draft tokens at a
random anchor. `tau` is what serving sees: tokens per verifier call, the bonus
token included, over the anchors that serving would visit.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def accepted_counts(match: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """Returns [...] the accepted draft tokens of windows [..., G]."""
  return np.cumprod(match & valid, axis=-1).sum(axis=-1)


def curves(match: np.ndarray, valid: np.ndarray) -> dict[str, list | float]:
  """Returns agree, cond, surv (lists of G), accepted and windows.

  A short window's missing slots are failures in `surv` (nothing can be
  accepted there) and are left out of `agree` and `cond`. A slot that no
  window has, or reaches, gives nan.

  Args:
    match: [N, G] bool, the draft token is the trajectory's.
    valid: [N, G] bool, a prefix of each window; windows without any are
      padding.
  """
  counted = valid[:, 0]
  match, valid = match[counted] & valid[counted], valid[counted]
  alive = np.cumprod(match, axis=-1).astype(bool)
  reached = np.concatenate([valid[:, :1], alive[:, :-1]], axis=-1) & valid
  windows = len(match)
  return {
    'agree': _ratio(match.sum(0), valid.sum(0)),
    'cond': _ratio(alive.sum(0), reached.sum(0)),
    'surv': _ratio(alive.sum(0), np.full(valid.shape[-1], windows)),
    'accepted': float(alive.sum() / windows) if windows else float('nan'),
    'windows': windows,
  }


def visited(accepted: Sequence[int] | np.ndarray) -> list[int]:
  """Returns the anchors at which serving begins a cycle.

  Walks s <- s + accepted[s] + 1, as the decode loop would: the verifier
  always goes its trajectory's way, so only the visited anchors matter.

  Args:
    accepted: [N] accepted draft tokens at each anchor.
  """
  anchors, position = [], 0
  while position < len(accepted):
    anchors.append(position)
    position += int(accepted[position]) + 1
  return anchors


def simulate(accepted: Sequence[int] | np.ndarray) -> tuple[int, int]:
  """Returns (tokens emitted, verifier calls) of serving one trajectory.

  Each call begins at one of the `visited` anchors; the last emits what is left.

  Args:
    accepted: [N] accepted draft tokens at each anchor. Anchor 0 is the
      prefill's token; anchor i has i + 1 committed completion tokens, and N
      is how many tokens come after anchor 0.

  Example:
    simulate([1, 0, 0]) == (3, 2)  # emits two tokens, then the third
  """
  return len(accepted), len(visited(accepted))


def simulate_tau(trajectories: Iterable[Sequence[int] | np.ndarray]) -> float:
  """Returns tokens over calls of all trajectories; nan if there are none."""
  walks = [simulate(accepted) for accepted in trajectories]
  calls = sum(walk[1] for walk in walks)
  return sum(walk[0] for walk in walks) / calls if calls else float('nan')


def _ratio(part: np.ndarray, whole: np.ndarray) -> list[float]:
  safe = np.where(whole > 0, whole, 1)
  return np.where(whole > 0, part / safe, np.nan).tolist()
