"""`inspect`: what a model's files hold, without reading the weights."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
from specdiff_jax.core import printing

_FLAGS = {
  'mesh': flag.Flag(
    'axes and sizes, as data=2,model=4: say how many bytes each '
    'chip holds when the weights are split over such a mesh',
    '',
  ),
  'chip-gib': flag.Flag(
    'memory of a chip in GiB, to say whether they fit', 0.0, 'float', 0.0
  ),
  'dtype': flag.Flag(
    'dtype of the weights on the chips',
    'bfloat16',
    'enum',
    choices=('float32', 'bfloat16'),
  ),
}

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
  flags=_FLAGS,
  examples=(
    'inspect runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf',
    'inspect preset:llama2_70b --mesh data=2,model=4 --chip-gib 16',
    'inspect smollm2_135m_instruct.safetensors',
  ),
  exit_codes={
    1: 'the tensors are not those that the config asks for; it says which',
  },
  recipe=False,
  takes='PATH',
)


def body(call: command.Call) -> int:
  from specdiff_jax.recipes import drafters as build_drafters
  from specdiff_jax.tools.inspect import describe
  from specdiff_jax.tools.inspect import report

  options, path = call.options, call.argument
  chip_gib = getattr(options, 'chip-gib')
  text = options.mesh or ('data=1' if chip_gib else '')
  mesh = _mesh(text) if text else {}
  if not mesh:
    command.unread(options, ('dtype',), 'it is that of weights on a --mesh')
  told = describe.describe(build_drafters.shipped(path))
  if mesh:
    told['mesh'] = report.fit(path, mesh, chip_gib, options.dtype)
  _show(told['path'], report.lines(told))
  console.result(told)
  return 1 if told.get('fault') else 0


def _mesh(text: str) -> dict[str, int]:
  """Returns {'data': 2, 'model': 4} for 'data=2,model=4'."""
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    number = int(size) if size.isdecimal() and len(size) <= 7 else 0
    if axis not in ('data', 'model') or axis in sizes or number < 1:
      raise errors.InputError(
        f'--mesh has the part {printing.short(part)}; give sizes of the axes data '
        'and model, each once, as in --mesh data=2,model=4.'
      )
    sizes[axis] = number
  return {'data': 1, 'model': 1, **sizes}


def _show(path: str, lines) -> None:
  """Prints the table."""
  import rich.table
  import rich.text

  def plain(text: str) -> rich.text.Text:  # names in it are no markup
    return rich.text.Text(printing.lines(text))

  title = plain(printing.one_line(path))
  table = rich.table.Table(show_header=False, title=title)
  table.add_column(style='bold')
  table.add_column(overflow='fold')
  for name, value in lines:
    table.add_row(name, plain(value))
  console.out().print(table)
