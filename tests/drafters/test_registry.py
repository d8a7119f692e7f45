"""The registry of families, and what it takes to add one of two networks."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import errors
from specdiff_jax.core import fields
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import tables

# The one line that registers a family: see `two_networks`.
DUAL = (
  "'dual': Entry('two_networks', system='dual', parts=('first', 'second'), "
  "options='two_networks')"
)
PROGRAM = f"""
import sys
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.registry import Entry
registry.FAMILIES |= {{{DUAL}}}
from specdiff_jax import __main__
print([__main__.main(argv.split('|')) for argv in sys.argv[1:]], file=sys.stderr)
"""


@pytest.fixture
def dual(monkeypatch):
  """Registers the family of two networks."""
  entry = registry.Entry(
    'two_networks',
    system='dual',
    parts=('first', 'second'),
    options='two_networks',
  )
  monkeypatch.setitem(registry.FAMILIES, 'dual', entry)


def test_naming_the_families_imports_none():
  program = (
    'import sys; from specdiff_jax.drafters import registry; '
    'registry.systems(), registry.forms(); '
    '[registry.options(kind) for kind in registry.kinds()]; '
    'assert not {"jax", "flax", "numpy"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_kinds_and_systems(dual):
  assert list(registry.kinds()) == [
    'diffusion', 'autoregressive', 'masked_lm', 'dflash', 'eagle',
    'dual.first', 'dual.second',
  ]  # fmt: skip
  assert registry.systems() == {
    'sps': 'autoregressive', 'eagle': 'eagle', 'd2sd': 'd2sd',
    'mixture': 'mixture', 'dual': 'dual',
  }  # fmt: skip


def test_every_family_says_what_its_line_says(dual):
  for name, entry in registry.FAMILIES.items():
    family = registry.family(name)
    assert tuple(family.networks) == (entry.parts if entry.options else ())
    assert bool(family.drafter) == bool(entry.options)
    # What is registered as a reader has what opens what it read.
    assert bool(family.readers) == bool(family.published)
    assert bool(family.readers) == bool(family.describe)
    assert set(family.architectures.values()) <= set(family.readers)
    # What is written can be read again.
    assert set(entry.writers) <= set(family.readers)
  assert all(map(callable, registry.writers().values()))
  for kind in registry.kinds():
    network = registry.network(kind)
    assert network.config.kind == kind
    assert callable(network.score)
    options = registry.options(kind)
    abouts = fields.abouts(options)
    assert set(abouts) == {f.name for f in dataclasses.fields(options)}


def test_one_name_is_split_one_way():
  """Families share a table of rules, so that a name means one thing."""
  axes = {}
  for family in map(registry.family, registry.FAMILIES):
    for name in family.by_output:
      assert axes.setdefault(name, 'output') == 'output'
    for name in family.by_input:
      assert axes.setdefault(name, 'input') == 'input'
  assert tables.matrices() == set(axes) == {'trunk', 'fuse', 'hint', 'expand'}


@pytest.mark.parametrize(
  'system, given, wanted',
  [
    ('sps', '', {'drafter': ''}),
    ('sps', 'a', {'drafter': 'a'}),
    ('specdiff', {'drafter': 'a'}, {'drafter': 'a'}),
    ('dual', '', {'first': '', 'second': ''}),
    ('dual', {'first': 'a'}, {'first': 'a', 'second': ''}),
    ('dual', {'first': 'a', 'second': 'b'}, {'first': 'a', 'second': 'b'}),
  ],
)
def test_paths_of_parts(dual, system, given, wanted):
  assert registry.paths(system, given) == wanted


@pytest.mark.parametrize(
  'system, given, words',
  [
    ('sps', {'third': 'a'}, ("'third'", 'are drafter')),
    ('dual', {'third': 'a'}, ("'third'", 'are first, second')),
    ('dual', 'a', ('first, second', 'a path for each')),
  ],
)
def test_bad_parts(dual, system, given, words):
  with pytest.raises(errors.InputError) as caught:
    registry.paths(system, given)
  assert all(word in str(caught.value) for word in (system, *words))


def test_two_networks_draft_in_one_system(dual, tmp_path, root):
  """Two files, one system: its greedy text is that of plain decoding."""
  checkpoint = presets.random('tiny', 'float32')
  flags = []
  for number, part in enumerate(('first', 'second')):
    network = registry.network(f'dual.{part}')
    options = registry.options(f'dual.{part}')(64)
    sizes = network.sizes(options, 2, checkpoint.config)
    params = network.initial(sizes, jax.random.key(number))
    path = str(tmp_path / f'{part}.safetensors')
    drafter_file.save(path, sizes, params, np.arange(64), checkpoint, {})
    flags.append(f'--config.drafters.dual.{part}={path}')
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text('{"id": "a", "prompt": "ab ab"}\n')

  def decode(system, *more):
    return '|'.join([
        'decode', f'--config={root}/configs/tiny.py:smoke',
        f'--prompts={prompts}', f'--out={tmp_path}/{system}.jsonl',
        f'--config.system={system}', *more,
    ])  # fmt: skip

  wrong = f'{flags[0]}x', flags[1]
  swapped = [flags[0], flags[1].replace('second.s', 'first.s')]
  done = run(
    decode('dual', '--config.drafters.dual.third=a'),
    decode('dual', *wrong),
    decode('dual', *swapped),
    decode('ar'),
    decode('dual', *flags),
  )
  assert '[2, 2, 2, 0, 0]' in done.stderr, done.stderr
  for words in ('third', 'first.safetensorsx', "of the kind 'dual.first'"):
    assert words in done.stderr, done.stderr
  texts = [
    json.loads((tmp_path / f'{system}.jsonl').read_text())['text']
    for system in ('ar', 'dual')
  ]
  assert texts[0] and texts[0] == texts[1]


def run(*commands):
  """Runs subcommands in a process in which the family is registered."""
  support = os.path.join(os.path.dirname(__file__), os.pardir, 'support')
  path = os.pathsep.join([os.path.abspath(support), *filter(None, sys.path)])
  return subprocess.run(
    [sys.executable, '-c', PROGRAM, *commands],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': path},
  )
