"""What the subcommands share: flags, config files, and help that teaches.

A subcommand's command line is its own flags, `--config=RECIPE[:VARIANT]`, and
`--config.FIELD=VALUE` for any field of the config. This module turns it into
a `Call`, or prints the help. Reading the fields is `recipes`' business. Those
that only handle files need no config, and may take a path instead.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
import textwrap
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.cli import paths
from specdiff_jax.core import errors
from specdiff_jax.core import paths as paths_lib
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import recipe_file

_EXIT_CODES = {
  0: 'done',
  2: 'bad input, too little memory or disk, or no device; the message says '
  'what and where, and what to do',
  130: 'interrupted by Ctrl-C',
}
_CONFIG = re.compile(r'^--?config(=|$)')
_FIELD = re.compile(r'^--?(no)?config\.([\w.]+)')


@dataclasses.dataclass(frozen=True)
class Call:
  """A parsed command line."""

  config: Any  # recipe with the overrides; None of programs that take none
  options: flags.FlagValues  # the subcommand's own flags
  recipe: str  # RECIPE[:VARIANT] as it was given
  arguments: Sequence[str]  # the positional ones
  argv: Sequence[str]  # as it was given

  @property
  def argument(self) -> str:
    """The only positional one."""
    return self.arguments[0]


@dataclasses.dataclass(frozen=True)
class Command:
  """The face of a subcommand."""

  name: str
  what: str  # paragraphs: what it does, and what it writes where
  flags: Mapping[str, flag.Flag]  # its own
  examples: Sequence[str]  # command lines without `python -m specdiff_jax`
  # The config fields that it reads: default and meaning.
  fields: Mapping[str, tuple[Any, str]] = dataclasses.field(
    default_factory=dict
  )
  # Other ones, or more to say of them, than _EXIT_CODES.
  exit_codes: Mapping[int, str] = dataclasses.field(default_factory=dict)
  recipe: bool = True  # it needs --config
  # What its one positional argument is called; with '...' there may be more.
  takes: str = ''

  def run(
    self,
    argv: Sequence[str],
    body: Callable[[Call], int],
  ) -> int:
    """Parses `argv` and calls `body`; or prints the help."""
    if any(arg in ('-h', '--help', '--helpfull', '-help') for arg in argv):
      print(self.help(), end='')
      return 0
    call = self.parse(argv)
    distributed = call.config is not None and call.config.distributed
    with console.ticking(self.name, distributed):
      return self._run(call, body)

  def _run(self, call: Call, body: Callable[[Call], int]) -> int:
    from specdiff_jax.core import jax_settings  # --help waits for no jax

    for other in jax_settings.settle():
      console.say(
        f'specdiff {self.name}: {other} is set for jax, which would change '
        "results or stop the program; it goes on with jax's default."
      )
    try:
      return body(call)
    except errors.InputError as error:
      if call.config is None:
        raise
      values = call.config.flat()
      raise recipe_file.explained(
        error, call.recipe, values, call.argv
      ) from error

  def parse(self, argv: Sequence[str]) -> Call:
    """Returns what the command line says; raises InputError."""
    given, spec, config = argv, '', ml_collections.ConfigDict()
    options = flag.defined(self.flags)
    if self.recipe:
      spec, argv = _take_config(argv)
      config = ml_collections.ConfigDict(recipe_file.complete(spec))
      self._check_overrides(argv, config, spec)
    try:
      if self.recipe:
        config_flags.DEFINE_config_dict(
          'config', config, flag_values=options, sys_argv=['', *argv]
        )
      rest = options(['', *argv])[1:]
    except flags.UnrecognizedFlagError as error:
      names = ['config'] * self.recipe
      names += [n for n in options if '.' not in n and n != 'config']
      raise fields.unknown(
        f'{self.name} was given the flag', f'{error.flagname}', names
      ) from None
    except (flags.Error, TypeError, ValueError, LookupError) as error:
      raise errors.InputError(
        f'The command line cannot be read: {_one_line(error)}. '
        f'See `python -m specdiff_jax {self.name} --help`.'
      ) from None
    for name in self.flags:
      value = options[name].value
      if isinstance(value, float) and not math.isfinite(value):
        raise errors.InputError(
          f'--{name} is {value}, but it has to be a finite number.'
        )
    self._check_positional(rest)
    paths.in_flags(options)
    recipe = None
    if self.recipe:
      values = options.config.to_dict()
      recipe = fields.typed(values, f'{spec}, with the command line,')
    given_paths = [paths_lib.expand(one, f'the {self.takes}') for one in rest]
    return Call(recipe, options, spec, given_paths, given)

  def _check_overrides(self, argv, config, spec: str) -> None:
    """Raises InputError if an override names a field that is not read."""
    for index, arg in enumerate(argv):
      match = _FIELD.match(arg)
      if not match:
        continue
      _, given, value = arg.partition('=')
      if not given:  # as the next argument, if at all
        value = argv[index + 1] if index + 1 < len(argv) else ''
      field = match.group(2)
      node: Any = config
      for part in field.split('.'):
        names = (
          list(node) if isinstance(node, ml_collections.ConfigDict) else []
        )
        if part not in names:
          raise fields.unknown(
            f'The config {spec} was given (on the command line) the field',
            field,
            names or fields.ALL,
          )
        node = node[part]
      if isinstance(node, tuple) and _is_unordered(value):
        raise errors.InputError(
          f'The config {spec} was given (on the command line) {value} for '
          f'{field!r}, which has to be a tuple, such as (2, 4) or '
          "('a', 'b')."
        )
      if not any(f'{name}.'.startswith(f'{field}.') for name in self.fields):
        raise errors.InputError(
          f'{self.name} does not read config.{field}, which the command line '
          'sets; leave it out (in a recipe it does no harm). '
          f'`python -m specdiff_jax {self.name} --help` lists what it reads.'
        )

  def _check_positional(self, rest: Sequence[str]) -> None:
    several = self.takes.endswith('...')
    if self.takes and (not rest if several else len(rest) != 1):
      raise errors.InputError(
        f'{self.name} takes one {self.takes}, but was given '
        f'{" ".join(rest) or "none"}. '
        f'See `python -m specdiff_jax {self.name} --help`.'
      )
    if rest and not self.takes:
      raise errors.InputError(
        f'{self.name} takes no positional arguments, but was given '
        f'{" ".join(rest)!r}. Flags start with `--`.'
      )

  def help(self) -> str:
    """Returns the whole help text."""
    told = flag.defined(self.flags)
    flag_lines = []
    for name in sorted(told):
      one = told[name]
      plain = one.default is None or one.default == ''
      default = '' if plain else f' (default: {one.default})'
      flag_lines.append((f'--{name}', f'{one.help}{default}'))
    usage = f'usage: python -m specdiff_jax {self.name}'
    if self.recipe:
      usage += ' --config=RECIPE[:VARIANT] [FLAGS] [--config.FIELD=VALUE ...]'
      recipe = (
        '--config=RECIPE',
        'a file, or the name of a recipe that comes with the package '
        '(quickstart). A Python program that is run: none from a stranger. '
        'Its relative paths are looked for beside it, then in the working '
        "directory, then in the package's configs/; those of flags and of "
        '--config.FIELD are relative to the working directory. Needed.',
      )
      flag_lines.insert(0, recipe)
    else:
      usage += f' {self.takes} [FLAGS]' if self.takes else ' [FLAGS]'
    field_lines = [
      (f'{name} = {default!r}', meaning)
      for name, (default, meaning) in self.fields.items()
    ]
    codes = {**_EXIT_CODES, **self.exit_codes}
    parts = [
      usage,
      '\n\n'.join(map(_paragraph, self.what.strip().split('\n\n'))),
      'Flags:\n' + _entries(*flag_lines),
    ]
    if self.recipe:
      parts.append(
        'Config fields (name = default unless the recipe says otherwise):\n'
        + _entries(*field_lines)
      )
    parts += [
      'Examples:\n'
      + '\n'.join(f'  python -m specdiff_jax {line}' for line in self.examples),
      'Exit codes:\n'
      + _entries(*((str(code), codes[code]) for code in sorted(codes))),
    ]
    return '\n\n'.join(parts) + '\n'


def unread(options: flags.FlagValues, names: Sequence[str], why: str) -> None:
  """Raises InputError if a flag is given that nothing reads here."""
  for name in names:
    if options[name].present:
      raise errors.InputError(
        f'--{name} is given, but would not be read: {why}. Leave it out.'
      )


def _one_line(error: BaseException) -> str:
  """Returns the message of an error of absl's, or of any program."""
  text = ' '.join(str(error).split()).rstrip('.')
  kind = type(error).__name__
  return text if isinstance(error, flags.Error) else f'{kind}: {text}'


def _take_config(argv: Sequence[str]) -> tuple[str, list[str]]:
  """Splits `--config=X` (or `--config X`) from the other arguments."""
  rest, spec = list(argv), ''
  for index, arg in enumerate(argv):
    if _CONFIG.match(arg):
      if '=' in arg:
        spec = arg.partition('=')[2]
        del rest[index]
      else:
        spec = argv[index + 1] if index + 1 < len(argv) else ''
        del rest[index : index + 2]
      break
  if not spec:
    raise errors.InputError(
      'There is no --config=RECIPE. Give one, such as --config=quickstart.'
    )
  return spec, rest


def _is_unordered(text: str) -> bool:
  """Returns whether a text is a dict or a set, which absl makes tuples of."""
  try:
    return isinstance(ast.literal_eval(text), (dict, set))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return False


def _entries(*pairs: tuple[str, str]) -> str:
  """Formats names and meanings in two columns."""
  lines = []
  for name, meaning in pairs:
    body = _wrap(meaning, 28).lstrip()
    if len(name) > 24:
      lines.append(f'  {name}\n{" " * 28}{body}')
    else:
      lines.append(f'  {name:<26}{body}')
  return '\n'.join(lines)


def _paragraph(text: str) -> str:
  """Returns a paragraph that is filled, or a table of `|` as it stands."""
  if not text.lstrip().startswith('|'):
    return _wrap(text, 0)
  return '\n'.join(line.strip() for line in text.splitlines())


def _wrap(text: str, indent: int) -> str:
  pad = ' ' * indent
  return textwrap.fill(
    ' '.join(text.split()),
    width=80,
    initial_indent=pad,
    subsequent_indent=pad,
  )


def verifier(
  recipe: recipe_lib.Recipe,
  split: Callable[[Any], Any] | None = None,
):
  """Returns `decoding.verifier`, with a bar where loading takes long."""
  from specdiff_jax.recipes import decoding

  with console.patient('loading (million values)') as show:
    loaded = decoding.verifier(
      recipe,
      progress=lambda done, all: show(done // 10**6, all // 10**6),
      split=split,
    )
  if ignored := decoding.not_applied(recipe):
    console.say(
      f'{loaded.source}: generation_config.json asks for '
      f'{", ".join(f"{k}={v!r:.40}" for k, v in ignored.items())}, which is '
      "not applied: the text is that of the verifier's own distribution, under "
      'config.temperature, top_k and top_p.'
    )
  return loaded


def needed(options: flags.FlagValues, name: str) -> str:
  """Returns a flag's value; raises InputError if it was not given."""
  value = options[name].value
  if not value:
    raise errors.InputError(
      f'There is no --{name}, which is needed: '
      f'{options[name].help.removesuffix(". Needed")}.'
    )
  return value
