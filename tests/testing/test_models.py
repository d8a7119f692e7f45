"""What `specdiff_jax.testing` gives to others."""

import jax
import numpy as np

import specdiff_jax as sd


def test_names_are_there():
  for name in ('check_drafter', 'tiny_verifier', 'Scripted', 'Script'):
    assert getattr(sd.testing, name).__doc__


def test_scanned_layers_are_the_same_numbers():
  plain, scanned = sd.testing.tiny_verifier(), sd.testing.tiny_verifier(True)
  assert scanned.config.scan_layers and not plain.config.scan_layers
  count = lambda one: sum(x.size for x in jax.tree.leaves(one.params))
  assert count(plain) == count(scanned)


def test_a_scripted_drafter_knows_its_tree():
  one = sd.testing.Scripted((0, 0, 0, 2), False, 61)
  assert one.buckets == (4,) and one.max_depth == 2
  assert one.depths == [0, 1, 1, 2]
  assert one == sd.testing.Scripted((0, 0, 0, 2), False, 61)
  assert np.ndim(one.depths) == 1
