"""Paths of command lines, relative to the working directory.

Those of recipes are found by `recipes.recipe_file`.
"""

from absl import flags

from specdiff_jax.core import paths as paths_lib

# Flags that are paths, or may be; of fields their `About` says so.
FLAGS = (
    'workdir', 'out', 'prompts', 'from', 'to', 'refresh', 'adapter', 'plot',
    'verifier', 'against', 'head', 'figures', 'path',
)  # fmt: skip


def in_flags(options: flags.FlagValues) -> None:
  """Expands the paths among a subcommand's own flags."""
  for name in FLAGS:
    if name in options and isinstance(value := options[name].value, str):
      options[name].value = paths_lib.expand(value, f'--{name}')
