"""The kernels of a decode cycle, compiled for an H100, do not become more."""

import importlib.util

import pytest

from benchmarks import gpu_kernels

# Of 2 layers of the verifier, at 1 and at 5 tokens a cycle; and of 3 with those
# of a drafter. Lower them where a program has fewer.
MOST = {'ar': 51, 'lookup': 68, 'specdiff': 152}
SMALL = {
  'ar': {'layers': 2},
  'lookup': {'layers': 2},
  'specdiff': {
    'layers': 3,
    'network': gpu_kernels.SIZES['network'] | {'features': (0, 1, 2)},
  },
}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not any(
      importlib.util.find_spec(f'jax_cuda{version}_plugin')
      for version in (12, 13)
    ),
    reason='the compiler for GPUs is not installed (specdiff_jax[cuda12])',
  ),
]


@pytest.mark.parametrize('system', SMALL)
def test_a_cycle_has_no_more_kernels(system):
  found = gpu_kernels.kernels(system, **SMALL[system])
  listed = '\n'.join(f'{n:4} {name}' for name, n in found.most_common())
  assert found.total() <= MOST[system], listed
