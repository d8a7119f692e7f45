"""Names of a grid's points: as long as a file system takes."""

from specdiff_jax.tools.sweep import grid


def test_long_values_are_cut_and_told_apart():
  values = ['/texts/' + 'é' * 150 + f'/{i}.jsonl' for i in range(2)]
  found = grid.points(lambda argv: argv, [f'prompts={",".join(values)}'])
  names = [point.name for point in found]
  assert len(set(names)) == 2
  assert all(len(name.encode()) <= 200 for name in names)
  assert all(name.startswith('prompts-texts-é') for name in names)
  (short,) = grid.points(lambda argv: argv, ['loss=ce'])  # the control
  assert short.name == 'loss-ce'
