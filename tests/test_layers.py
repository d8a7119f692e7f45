"""The walls of the house, checked over the imports and a few names.

Each rule is a function from source text to complaints, and each is shown to
complain about a source that breaks it.
"""

import ast
import dataclasses
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'specdiff_jax'
LAYERS = (
  {'core'},
  {'parallel', 'losses'},
  {'models', 'text'},
  {'checkpoints'},
  {'data'},
  {'verifiers'},
  {'drafters'},
  {'decoding'},
  {'training'},
  {'collecting'},
  {'recipes'},
  {'testing'},
  {'tools'},
  {'api'},
  {'cli'},
  {'__main__'},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Who alone may import what, as prefixes of paths in the package.
ONLY = {
  'orbax': ('training/checkpoint/',),
  'grain': ('data/',),
  'tensorflow_datasets': ('data/',),
  'array_record': ('data/',),
  'pyarrow': ('data/',),
  'absl': ('cli/',),
  'ml_collections': ('cli/', 'recipes/recipe_file.py'),
  'rich': ('cli/',),
  'matplotlib': ('tools/plots.py',),
  'tensorboardX': ('training/metrics.py',),
  'gguf': ('checkpoints/',),
  'huggingface_hub': ('checkpoints/hub.py',),
  'safetensors': ('checkpoints/',),
  'tokenizers': ('text/',),
  'tensorflow': (),
  'torch': ('tools/bench/rival.py',),
  'transformers': ('tools/bench/rival.py',),
  'llama_cpp': ('tools/bench/rival.py',),
}


def imports(tree: ast.AST):
  """Yields the dotted name of every module that a source imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path: str) -> str:
  """Returns the room of a file, by its path in the package."""
  first = pathlib.PurePosixPath(path).parts[0]
  return first.removesuffix('.py')


def layer_faults(path: str, source: str) -> list[str]:
  """Returns imports of a higher layer, or of a neighbour in the same."""
  mine, faults = room(path), []
  for name in imports(ast.parse(source)):
    parts = name.split('.')
    if parts[0] != 'specdiff_jax' or len(parts) < 2:
      continue
    other = parts[1]
    if other != mine and RANK[other] >= RANK[mine]:
      faults.append(f'{path} imports {other}')
  return faults


def owner_faults(path: str, source: str) -> list[str]:
  """Returns imports of libraries that belong to another room."""
  faults = []
  for name in imports(ast.parse(source)):
    allowed = ONLY.get(name.split('.')[0])
    if allowed is not None and not path.startswith(allowed):
      faults.append(f'{path} imports {name}')
  return faults


def print_faults(path: str, source: str) -> list[str]:
  """Returns what prints outside cli and __main__."""
  if room(path) in ('cli', '__main__'):
    return []
  faults = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Name) and node.id == 'print':
      faults.append(f'{path}:{node.lineno} prints')
    if isinstance(node, ast.Attribute) and node.attr in ('stdout', 'stderr'):
      if isinstance(node.value, ast.Name) and node.value.id == 'sys':
        faults.append(f'{path}:{node.lineno} writes to sys.{node.attr}')
  return faults


def config_faults(path: str, source: str) -> list[str]:
  """Returns reads of a recipe's groups in cli: `recipes` does that."""
  from specdiff_jax.recipes import recipe

  groups = {one.name for one in dataclasses.fields(recipe.Recipe)}
  if room(path) not in ('cli', '__main__'):
    return []
  faults = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute) and node.attr in groups:
      owner = ast.unparse(node.value).split('.')[-1]
      if owner == 'config':
        faults.append(f'{path}:{node.lineno} reads config.{node.attr}')
  return faults


def name_faults(path: str, source: str) -> list[str]:
  """Returns imports of names where modules are meant to be imported."""
  faults = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom) and node.module:
      if not node.module.startswith('specdiff_jax'):
        continue
      folder = PACKAGE.parent / node.module.replace('.', '/')
      for alias in node.names:
        if (
          not (folder / alias.name).with_suffix('.py').exists()
          and not (folder / alias.name).is_dir()
        ):
          faults.append(f'{path} imports the name {alias.name}')
  return faults


RULES = (layer_faults, owner_faults, print_faults, config_faults, name_faults)

BROKEN = {
  layer_faults: (
    ('core/a.py', 'from specdiff_jax.models import transformer'),
    ('drafters/a.py', 'from specdiff_jax.decoding import engine'),
    ('drafters/a.py', 'import specdiff_jax.decoding.engine'),
    ('training/a.py', 'def f():\n  from specdiff_jax.tools import bench'),
    ('recipes/a.py', 'from specdiff_jax.cli import console'),
  ),
  owner_faults: (
    ('training/loop.py', 'import orbax.checkpoint as ocp'),
    ('models/a.py', 'import grain'),
    ('data/a.py', 'from absl import flags'),
    ('models/a.py', 'import torch'),
    ('decoding/a.py', 'from ml_collections import config_dict'),
    ('recipes/a.py', 'from ml_collections import config_dict'),
    ('data/a.py', 'import tensorflow as tf'),
  ),
  print_faults: (
    ('core/a.py', 'print("hello")'),
    ('tools/bench/a.py', 'import sys\nsys.stderr.write("x")'),
  ),
  config_faults: (
    ('cli/a.py', 'def f(config):\n  return config.sampling.top_k'),
    ('cli/a.py', 'def f(call):\n  return call.config.decoding'),
  ),
  name_faults: (
    ('core/a.py', 'from specdiff_jax.core.types import DraftTree'),
  ),
}


def sources():
  """Yields (path in the package, source) of every module."""
  for file in sorted(PACKAGE.rglob('*.py')):
    yield file.relative_to(PACKAGE).as_posix(), file.read_text()


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
  faults = [
    fault
    for path, source in sources()
    if path != '__init__.py'
    for fault in rule(path, source)
  ]
  assert not faults, '\n'.join(faults)


@pytest.mark.parametrize(
  'rule, path, source',
  [(rule, *case) for rule, cases in BROKEN.items() for case in cases],
)
def test_rule_sees_what_breaks_it(rule, path, source):
  assert rule(path, source)


def test_every_room_has_a_layer():
  rooms = {room(path) for path, _ in sources()} - {'__init__'}
  assert rooms <= set(RANK)
