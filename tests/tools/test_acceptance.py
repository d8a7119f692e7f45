"""The table of acceptance rules: what is said of it, and that it is shown."""

import runpy

import jax
import numpy as np
import pytest
import rule_distributions as outcomes

from specdiff_jax.core import sampling as sampling_lib


@pytest.fixture(scope='module')
def program(root):
  return runpy.run_path(str(root / 'benchmarks' / 'acceptance.py'))


def test_the_page_shows_what_the_program_prints(program, root):
  page = (root / 'docs' / 'exactness.md').read_text()
  for line in program['lines'](40):
    assert line in page, line
  for rule, by_pair in program['table'](40).items():
    far = max(tv for tv, _, _ in by_pair.values())
    if rule in program['REFUSED']:
      assert far > outcomes.LOSSY, rule
    else:
      assert far < outcomes.EXACT, rule


def test_greedy_acceptance_is_never_above_rejection(program):
  found = program['table'](40)
  for name, (_, mean, _) in found['greedy', 'drawn'].items():
    best = found['rejection', 'drawn'][name][1]
    assert mean <= best + outcomes.EXACT
    same = found['match', 'drawn'][name]
    np.testing.assert_allclose(found['greedy', 'drawn'][name][1:], same[1:])
  # Its worst case: 1 / V of a slot, where rejection accepts all.
  _, mean, _ = found['greedy', 'drawn']['both uniform']
  np.testing.assert_allclose(mean, 1 / 3 + 1 / 9)


def test_shared_noise_by_counts(program):
  """The closed form, beside draws of the package's noise."""
  p, q = program['pairs'](0)['own marginals']
  rows = 100_000
  noise = sampling_lib.request_noise(0, np.arange(rows, dtype=np.uint32))
  positions = np.tile(np.arange(2), (rows, 1))
  drawn = jax.jit(sampling_lib.gumbel, static_argnums=2)
  g = np.asarray(drawn(noise, positions, 3))
  x = (np.log(q) + g).argmax(-1)
  first = (np.log(p[0]) + g[:, 0]).argmax(-1)
  second = (np.log(p[1 + first]) + g[:, 1]).argmax(-1)
  count = np.cumprod([first == x[:, 0], second == x[:, 1]], axis=0).sum(0)
  _, mean, variance = program['measured'](*program['shared_noise'](p, q), p)
  sure = 4 * (variance / rows) ** 0.5
  np.testing.assert_allclose(count.mean(), mean, atol=sure)
  np.testing.assert_allclose(count.var(), variance, atol=0.01)
