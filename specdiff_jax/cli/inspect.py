"""`inspect`: what a model's files hold, without reading the weights."""

import re
from typing import Any

from absl import flags

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.core import errors
from specdiff_jax.core import printing

_GIB = 2**30


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'mesh',
    '',
    'axes and sizes, as data=2,model=4: say how many bytes each '
    'chip holds when the weights are split over such a mesh',
    flag_values=own,
  )
  flags.DEFINE_float(
    'chip-gib',
    0.0,
    'memory of a chip in GiB, to say whether they fit',
    lower_bound=0.0,
    flag_values=own,
  )
  flags.DEFINE_enum(
    'dtype',
    'bfloat16',
    ['float32', 'bfloat16'],
    'of the weights on the chips',
    flag_values=own,
  )


COMMAND = command.Command(
  name='inspect',
  what="""
    Says what a model is, from the headers of its files alone: network and
    sizes, parameters, dtypes and bytes, tokenizer, and whether names and shapes
    of the tensors are those that the config asks for. No weight is read (but a
    head that is said to be the embedding, where the file has one, is compared
    with it), and nothing is downloaded.

    PATH is a GGUF file, a directory of Hugging Face or our own, a name on the
    hub (org/name, or org/name@REVISION) whose model is in its cache, the
    safetensors file of one of our drafters (or its name in specdiff_jax/zoo),
    or preset:NAME, the shape of a published model such as preset:qwen2.5_72b;
    an unknown NAME lists them.

    With --mesh it says what each chip has to hold, and which tensors the mesh
    does not divide, which each chip holds whole: the dimension, and the axis of
    the mesh. The last line of stdout is one JSON object.
    """,
  define=_define,
  fields={},
  examples=(
    'inspect runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf',
    'inspect preset:llama2_70b --mesh data=2,model=4 --chip-gib 16',
    'inspect smollm2_135m_instruct.safetensors',
  ),
  exit_codes={
    0: 'done',
    1: 'the tensors are not those that the config asks for; it says which',
    2: 'bad input; the message says what and where, and what to do',
  },
  recipe=False,
  takes='PATH',
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  from specdiff_jax.recipes import drafters as build_drafters
  from specdiff_jax.tools.inspect import describe

  options, path = call.options, call.argument
  chip_gib = options['chip-gib'].value
  mesh = _mesh(options.mesh or ('data=1' if chip_gib else ''))
  told = describe.describe(build_drafters.shipped(path))
  if mesh:
    told['mesh'] = _fit(path, mesh, chip_gib, options.dtype)
  _show(told)
  console.result(told)
  return 1 if told.get('fault') else 0


def _mesh(text: str) -> dict[str, int]:
  """Returns {'data': 2, 'model': 4} for 'data=2,model=4'."""
  sizes = {}
  for part in filter(None, text.split(',')):
    axis, _, size = part.partition('=')
    if axis not in ('data', 'model') or not size.isdecimal() or int(size) < 1:
      raise errors.InputError(
        f'--mesh has the part {part!r}; give sizes of the axes data and '
        'model, as in --mesh data=2,model=4.'
      )
    sizes[axis] = int(size)
  return {'data': 1, 'model': 1, **sizes} if sizes else {}


def _fit(path: str, mesh, chip_gib: float, dtype: str) -> dict[str, Any]:
  """Returns what each chip of the mesh holds."""
  from specdiff_jax.tools.inspect import describe

  found = describe.per_chip(describe.sizes(path), mesh, dtype)
  fit = {'axes': mesh, 'dtype': dtype, **found}
  if chip_gib:
    fit |= {'chip_gib': chip_gib, 'fits': found['weights'] <= chip_gib * _GIB}
  return fit


def _show(told: dict[str, Any]) -> None:
  """Prints the table."""
  import rich.table
  import rich.text

  def plain(text: str) -> rich.text.Text:  # names in it are no markup
    return rich.text.Text(printing.lines(text))

  title = plain(printing.one_line(told['path']))
  table = rich.table.Table(show_header=False, title=title)
  table.add_column(style='bold')
  table.add_column(overflow='fold')
  for name, value in _rows(told):
    table.add_row(name, plain(str(value)))
  console.out().print(table)


def _rows(told: dict[str, Any]):
  """Yields (what, how it is shown)."""
  yield 'form', told['form']
  yield 'family', told['family']
  if 'network' in told:
    yield 'network', told['network']
  sizes = {k: v for k, v in told['config'].items() if v not in (None, 0, False)}
  yield 'config', ', '.join(f'{k}={v}' for k, v in sizes.items())
  yield 'parameters', f'{told["parameters"]:,}'
  for name in ('verifier', 'drafter'):
    if name in told:
      yield name, _line(told[name])
  if 'bytes' in told:
    yield (
      'stored',
      ', '.join(
        f'{kind} {console.size(n)}' for kind, n in told['dtypes'].items()
      )
      + f'; {console.size(told["bytes"])} in all',
    )
  if 'tokenizer' in told:
    yield 'tokenizer', _line(told['tokenizer'])
  if 'mesh' in told:
    yield 'each chip', _chip(told['mesh'])
    if whole := told['mesh']['not_split']:
      layers_alike = (re.sub(r'layer_\d+', 'layer_*', line) for line in whole)
      yield 'each chip, whole', '\n'.join(dict.fromkeys(layers_alike))
  if 'fault' in told:
    yield 'tensors', told['fault'] or 'as the config asks for'


def _line(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k}: {v}' for k, v in value.items())
  return str(value)


def _chip(mesh: dict[str, Any]) -> str:
  axes = ', '.join(f'{axis}={size}' for axis, size in mesh['axes'].items())
  text = (
    f'{axes}: {console.size(mesh["weights"])} of '
    f'{console.size(mesh["weights_whole"])} in {mesh["dtype"]}'
  )
  if 'fits' in mesh:
    does = 'fits' if mesh['fits'] else 'does not fit'
    text += f', which {does} in {mesh["chip_gib"]:g} GiB'
  return text + (
    f'; keys and values take {console.size(mesh["cache_per_token"])} for '
    'each token of a row (bfloat16, on all chips together)'
  )
