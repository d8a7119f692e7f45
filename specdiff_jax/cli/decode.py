"""`decode`: text from prompts."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.recipes import recipe

_FLAGS = {
  'prompt': flag.Flag('the prompt itself'),
  **flag.FILE,
  'out': flag.Flag(
    'write JSON lines here in place of text on stdout: id, text, tokens '
    '(with the end token if it came), tau, prompt_sha256 (of the '
    "prompt's tokens), and sum (of the line's bytes before it). Each is on "
    'disk once it is done. Run again with the same settings, it goes on '
    'where it was; FILE.settings.json tells them'
  ),
  'logprobs': flag.Flag(
    'with --out: log-probabilities of the tokens under the verifier, at '
    'temperature 1 without top-k and top-p, from the pass that verifies them',
    False,
    'bool',
  ),
  'overwrite': flag.Flag('drop what is in the file of --out', False, 'bool'),
}

COMMAND = command.Command(
  name='decode',
  what="""
    Completes prompts with the verifier. Whatever drafts (config.system), the
    text is the one that plain decoding with the same seed gives, at every
    temperature; only the speed differs. (Rules that draw coins of their own,
    which deer has and config.rule can ask for, draw another text of the same
    distribution above temperature 0.)

    The text goes to stdout as it is made (with several requests at once:
    when it and those before it are done), remarks go to stderr.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING),
  examples=(
    'decode --config=configs/quickstart.py --prompt "What is the capital of France?"',
    'decode --config=configs/quickstart.py --prompts my.jsonl --out '
    'out.jsonl --config.batch=4 --config.temperature=1.0',
    'decode --config=configs/quickstart.py --config.system=ar '
    '--config.verifier=model.gguf --prompt Hello',
    'decode --config=configs/quickstart.py --prompt Hello '
    '--config.stop="(\'\\n\\n\',)"',
  ),
)


def body(call: command.Call) -> int:
  from specdiff_jax.data import prompts as prompts_lib
  from specdiff_jax.recipes import decoding

  options = call.options
  if (options.prompt is None) == (options.prompts is None):
    raise errors.InputError(
      'decode takes either --prompt TEXT or --prompts FILE.jsonl; give one '
      'of the two.'
    )
  if options.logprobs and not options.out:
    raise errors.InputError(
      '--logprobs is given, but not --out FILE, whose lines hold them; add it.'
    )
  if options.prompt is not None:
    command.unread(options, ('limit',), '--prompt is one')
  if not options.out:
    command.unread(options, ('overwrite',), 'there is no --out')
  decoding.check(call.config)
  if options.prompt is None:
    prompts = prompts_lib.read(options.prompts, options.limit or None)
  elif options.prompt.strip():
    prompts = [prompts_lib.Prompt('prompt', options.prompt)]
  else:
    raise errors.InputError('--prompt is empty; give some text to go on from.')
  checkpoint = command.verifier(call.config)
  system = decoding.system(call.config, checkpoint)
  requests = decoding.requests(call.config, checkpoint, prompts)
  if options.out:
    settings = decoding.identity(call.config, checkpoint)
    if options.logprobs:
      system = system.keeping(logprobs=True)
      settings = settings | {'logprobs': True}
    _to_file(system, requests, options.out, settings, options.overwrite)
  elif system.batch == 1 or len(requests) == 1:
    for request in requests:
      if len(requests) > 1:
        _head(request)
      console.stream(system, request)
  else:
    _in_order(system, requests)
  return 0


def _in_order(system, requests) -> None:
  """Writes completions to stdout, each after those of the prompts before."""
  waiting, texts = list(requests), {}

  def on_done(request, completion) -> None:
    texts[request.id], _ = system.cut(completion)
    while waiting and waiting[0].id in texts:
      _head(waiting[0])
      name = waiting.pop(0).id
      text = texts.pop(name)
      console.text(text + '\n')
      console.remark(name, text)

  system.decode(requests, on_tokens=system.watch(), on_done=on_done)


def _to_file(system, requests, path, settings, overwrite: bool) -> None:
  """Writes JSON lines, in the order in which the completions are done."""
  from specdiff_jax.data import outputs

  keys = {r.id: outputs.prompt_key(r.prompt) for r in requests}
  with outputs.Outputs(path, settings, keys, overwrite) as file:
    left = [request for request in requests if request.id not in file.done]
    there, total = len(requests) - len(left), len(requests)
    if there:
      console.say(f'{path}: {there} of {total} prompts are there already.')
    with console.progress('decoding', total) as show:
      show(there)

      def on_done(request, completion) -> None:
        nonlocal there
        text, tokens = system.cut(completion)
        file.append(
          {
            'id': request.id,
            'text': text,
            'tokens': tokens,
            'tau': round(completion.tau, 4),
            'prompt_sha256': keys[request.id],
          }
          | _logprobs(completion, len(tokens))
        )
        there += 1
        show(there, total)

      system.decode(left, on_tokens=system.watch(), on_done=on_done)


def _logprobs(completion, count: int) -> dict[str, list[float]]:
  """Returns those of `count` tokens, the text's; {} where none are kept."""
  if completion.logprobs is None:
    return {}
  # float32 has seven digits; its repr as float64 would have seventeen.
  return {'logprobs': [float(f'{x:.7g}') for x in completion.logprobs[:count]]}


def _head(request) -> None:
  console.text(f'== {printing.one_line(request.id)} ==\n')
