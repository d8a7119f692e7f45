"""From causal to bidirectional, and what shifted outputs predict."""

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.drafters.masked_lm import training as adaptation

T = 64
CAUSAL = np.tril(np.ones((T, T), bool))
FULL = np.ones((T, T), bool)
FULL[:, -4:] = False  # padding


def test_annealed_mask():
  key = jax.random.key(0)
  masks = {
    share: np.asarray(adaptation.annealed_mask(key, CAUSAL, FULL, share))
    for share in (0.0, 0.3, 1.0)
  }
  np.testing.assert_array_equal(masks[0.0], CAUSAL & FULL)
  np.testing.assert_array_equal(masks[1.0], FULL)
  future = FULL & ~CAUSAL
  assert (masks[0.3][CAUSAL & FULL]).all() and not masks[0.3][:, -4:].any()
  assert abs(masks[0.3][future].mean() - 0.3) < 0.05
  other = adaptation.annealed_mask(jax.random.key(1), CAUSAL, FULL, 0.3)
  assert (np.asarray(other) != masks[0.3]).any()  # the control: new each step


def test_annealed_share():
  share = [float(adaptation.annealed_share(s, 4)) for s in (0, 1, 3, 9)]
  assert share == [0.25, 0.5, 1.0, 1.0]


def test_shifted_targets_of_an_oracle():
  """A one-hot oracle that is aligned as told is right wherever it counts."""
  tokens = jnp.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
  masked = jnp.array([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1]], bool)
  target, counted = adaptation.shifted_targets(tokens, masked)
  outputs = np.roll(np.asarray(tokens), -1, axis=-1)  # of the oracle
  assert (np.asarray(target) == outputs)[np.asarray(counted)].all()
  # All masked tokens but a first one are predicted, once each.
  np.testing.assert_array_equal(
    np.asarray(counted)[:, :-1], np.asarray(masked)[:, 1:]
  )
  assert not np.asarray(counted)[:, -1].any()
  # Negative control: same-position targets disagree with this oracle.
  assert (np.asarray(tokens) != outputs)[np.asarray(counted)].any()
