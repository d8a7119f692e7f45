"""Why drafts end: the classes by hand, and that they add up while decoding."""

import contract_systems as systems
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import types
from specdiff_jax.decoding import commit
from specdiff_jax.decoding import request as request_lib

NAMES = list(types.ENDS)
# Slots: 0 the root, 1 and 2 its children a and b, 3 (c) after a, 4 (d) after b.
PARENT, DEPTH = [0, 0, 0, 1, 2], [0, 1, 1, 2, 2]
A, B, C, D, X = 11, 12, 13, 14, 15


def why(count, bonus, ended=False, candidates=None, valid=(1, 1, 1, 1, 1)):
  one = lambda x: jnp.array([x])
  tree = types.DraftTree(
    one([9, A, B, C, D]),
    one(PARENT),
    one(DEPTH),
    one(valid).astype(bool),
    candidates=None if candidates is None else one(candidates),
  )
  verdict = types.Verdict(one([0, 1, 3]), one(count), one(bonus))
  return NAMES[int(commit.why(tree, verdict, one(ended))[0])]


@pytest.mark.parametrize(
  'given, wanted',
  [
    ({'count': 0, 'bonus': X}, 'not in top-K'),
    ({'count': 1, 'bonus': X}, 'not in top-K'),
    ({'count': 1, 'bonus': D}, 'wrong parent'),
    ({'count': 1, 'bonus': D, 'valid': (1, 1, 1, 1, 0)}, 'not in top-K'),
    ({'count': 2, 'bonus': X}, 'budget'),  # all of a path
    ({'count': 0, 'bonus': B}, 'budget'),  # another chain was chosen
    ({'count': 1, 'bonus': D, 'ended': True}, 'end'),
    # Candidates that were not drafted.
    ({'count': 0, 'bonus': X, 'candidates': [[A, B, X], [C, D, -1]]}, 'budget'),
    (
      {'count': 1, 'bonus': X, 'candidates': [[A, B, X], [C, D, -1]]},
      'not in top-K',
    ),
    ({'count': 2, 'bonus': X, 'candidates': [[A, B, X], [C, D, -1]]}, 'budget'),
    # No slot is that deep, and it was no candidate either.
    (
      {
        'count': 1,
        'bonus': X,
        'candidates': [[A, B], [C, D]],
        'valid': (1, 1, 1, 0, 0),
      },
      'not in top-K',
    ),
  ],
)
def test_by_hand(given, wanted):
  assert why(**given) == wanted


@pytest.mark.parametrize('kind', ['tree', 'scripted', 'best_first'])
def test_they_add_up_to_the_histogram(kind):
  settings = request_lib.Settings(
    max_new_tokens=systems.NEW, temperature=1.0, seed=3
  )
  found = systems.run(systems.Row(kind), settings)
  for one in found:
    np.testing.assert_array_equal(one.ends.sum(1), one.accepted)
    assert one.ends[:, NAMES.index('end')].sum() == 1  # the limit
  total = sum(one.ends for one in found).sum(0)
  assert total[NAMES.index('not in top-K')] > 0
  chain = kind == 'scripted'
  assert (total[NAMES.index('wrong parent')] == 0) == chain
  assert (total[NAMES.index('budget')] > 0) == (kind != 'scripted')
