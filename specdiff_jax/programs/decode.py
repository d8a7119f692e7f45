"""`decode`: text from prompts."""

import contextlib
import json
import os

from absl import flags

from specdiff_jax.core import errors
from specdiff_jax.programs import command
from specdiff_jax.programs import console
from specdiff_jax.programs import fields
from specdiff_jax.programs import text as text_lib


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string('prompt', None, 'the prompt itself', flag_values=own)
  flags.DEFINE_string(
      'prompts',
      None,
      'a JSONL file of prompts, with the fields id and prompt',
      flag_values=own,
  )
  flags.DEFINE_integer(
      'limit', 0, 'take this many prompts of the file; 0 takes all',
      lower_bound=0, flag_values=own,
  )
  flags.DEFINE_string(
      'out',
      None,
      'write JSON lines here in place of text on stdout: id, text, tokens '
      '(with the end token if it came), tau. A file that is there is replaced',
      flag_values=own,
  )


COMMAND = command.Command(
    name='decode',
    what="""
    Completes prompts with the verifier. Whatever drafts (config.system), the
    text is the one that plain decoding with the same seed gives, at every
    temperature; only the speed differs.

    The text goes to stdout as it is made (with several rows at once: when
    their batch is done), remarks go to stderr.
    """,
    define=_define,
    fields=fields.DECODING,
    examples=(
        'decode --config=configs/quickstart.py --prompt "What is 12 * 7?"',
        'decode --config=configs/quickstart.py --prompts my.jsonl --out '
        'out.jsonl --config.batch=4 --config.temperature=1.0',
        'decode --config=configs/quickstart.py --config.system=ar '
        '--config.verifier=model.gguf --prompt Hello',
        'decode --config=configs/quickstart.py --prompt Hello '
        "--config.stop=\"('\\n\\n',)\"",
    ),
    exit_codes={
        0: 'done',
        2: 'bad input; the message says what and where, and what to do',
    },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  from specdiff_jax import build
  from specdiff_jax.data import prompts as prompts_lib

  options = call.options
  if (options.prompt is None) == (options.prompts is None):
    raise errors.InputError(
        'decode takes either --prompt TEXT or --prompts FILE.jsonl; give one '
        'of the two.'
    )
  build.check(call.config)
  if options.prompt is None:
    prompts = prompts_lib.read(options.prompts, options.limit or None)
  elif options.prompt.strip():
    prompts = [prompts_lib.Prompt('prompt', options.prompt)]
  else:
    raise errors.InputError('--prompt is empty; give some text to go on from.')
  checkpoint = build.verifier(call.config)
  system = build.system(call.config, checkpoint)
  requests = build.requests(call.config, checkpoint, prompts)
  decode = checkpoint.tokenizer.decode
  many = len(prompts) > 1
  with contextlib.ExitStack() as stack:
    writer = _Text(decode, system.stop, many)
    if options.out:
      writer = _Lines(options.out, decode, system.stop)
      stack.callback(writer.close)
    for batch in build.batches(call.config, requests):
      look = writer.begin(batch)
      writer.end(batch, system(batch, on_tokens=look))
  return 0


class _Text:
  """Writes completions to stdout, while they are made if they come singly."""

  def __init__(self, decode, stop, many: bool):
    self._decode, self._stop, self._many = decode, stop, many

  def begin(self, batch):
    """Returns what looks at new tokens: it prints, and stops at a stop."""
    self._stream = text_lib.Stream(self._decode, self._stop)
    if len(batch) > 1:
      return text_lib.watch(self._decode, self._stop)
    self._head(batch[0])
    return self._show

  def end(self, batch, completions) -> None:
    """Writes what is left of the batch."""
    if len(batch) == 1:
      console.text(self._stream.finish() + '\n')
      return
    for request, completion in zip(batch, completions):
      self._head(request)
      text, _ = text_lib.cut(self._decode, completion.tokens, self._stop)
      console.text(text + '\n')

  def _show(self, number: int, tokens) -> bool:
    del number
    console.text(self._stream.show(tokens))
    return self._stream.stopped

  def _head(self, request) -> None:
    if self._many:
      console.text(f'== {request.id} ==\n')


class _Lines:
  """Writes completions as JSON lines, on disk after each batch."""

  def __init__(self, path: str, decode, stop):
    self._path, self._decode, self._stop = path, decode, stop
    self._file = _open(path)

  def begin(self, batch):
    """Returns what looks at new tokens, if anything has to."""
    del batch
    return text_lib.watch(self._decode, self._stop)

  def end(self, batch, completions) -> None:
    """Writes the batch."""
    records = [self._record(r, c) for r, c in zip(batch, completions)]
    try:
      self._file.write(''.join(json.dumps(r) + '\n' for r in records))
      self._file.flush()
      os.fsync(self._file.fileno())
    except OSError as error:
      raise errors.InputError(
          f'{self._path} cannot be written ({error.strerror or error}). Free '
          'some space, and run the command again.'
      ) from error

  def close(self) -> None:
    """Closes the file."""
    with contextlib.suppress(OSError):
      self._file.close()

  def _record(self, request, completion) -> dict:
    text, tokens = text_lib.cut(self._decode, completion.tokens, self._stop)
    return {
        'id': request.id,
        'text': text,
        'tokens': tokens,
        'tau': round(completion.tau, 4),
    }


def _open(path: str):
  try:
    return open(path, 'w', encoding='utf-8')
  except OSError as error:
    raise errors.InputError(
        f'--out: {path!r} cannot be written ({error.strerror or error}). Give '
        'a file in a folder that exists.'
    ) from error
