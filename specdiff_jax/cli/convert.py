"""`convert`: a model from one form on disk to another."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
from specdiff_jax.drafters import registry

_FLAGS = {
  'from': flag.Flag(
    'the model: a GGUF file, a directory, or a name on the hub. Needed'
  ),
  'to': flag.Flag('the directory to write, not there yet or empty. Needed'),
  'format': flag.Flag(
    'what to write',
    'hf',
    'enum',
    choices=('hf', 'native', *registry.forms()),
  ),
  'dtype': flag.Flag(
    'dtype of all weights; '
    'without it each stays as it is stored, quantised ones become float32',
    '',
    'enum',
    choices=('', 'float32', 'bfloat16', 'float16'),
  ),
  'head': flag.Flag(
    'file of a head that `distill` trained on a DFlash drafter of ours, to be '
    'written with it',
    '',
  ),
  'adapter': flag.Flag('directory of a LoRA adapter (PEFT) to merge in', ''),
}

COMMAND = command.Command(
  name='convert',
  what="""
    Writes a model in another form, tensor by tensor, so that it needs little
    memory whatever the model's size. The directory appears whole in the end, or
    not at all.

    --format=hf: what `transformers` and serving stacks load, from GGUF files
    too (dequantised); beyond 5 GB in several files. --format=native: our names
    and config, and to the byte what lay beside the weights, so that
    --format=hf gives back the bytes of every tensor. --format=dflash or
    speculators: a DFlash drafter, published or trained here (a network.kind of
    dflash), as z-lab, vLLM and SGLang, or vLLM's speculators load it, always
    with the verifier's whole vocabulary; with a --head of the kind selector and
    convolutions it is DFlash 2, with one of the kind markov or gated DSpark.
    Other networks have no such form and
    are refused, other drafters that `distill` trained among them: no other
    program has their networks, and it says how they are served here.

    What a DFlash drafter is told by, in --format=dflash, in speculators, and in
    the GGUF that llama.cpp's convert_hf_to_gguf.py makes of the first:

    | dflash_config.   | speculators (top level)    | llama.cpp dflash. |
    | target_layer_ids | aux_hidden_state_layer_ids | target_layers     |
    | L, from 0 on     | L + 1                      | L + 1             |
    | mask_token_id    | mask_token_id              | mask_token_id     |
    | block_size       | block_size                 | block_size        |

    Beside the weights are copied: configs, files of the tokenizer, chat
    templates, code (*.py), README, LICENSE and NOTICE. Other names are not, and
    a link that leads out of the model and its hub cache is refused. What a
    killed run left in the parent directory, the next one there removes.

    The last line of stdout is one JSON object: to, format, tensors, bytes,
    files.
    """,
  flags=_FLAGS,
  examples=(
    'convert --from runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf '
    '--to runs/smollm2 --format hf --dtype bfloat16',
    'convert --from runs/smollm2 --to runs/native --format native',
    'convert --from org/name --adapter runs/lora --to runs/merged',
  ),
  exit_codes={
    2: 'bad input, or a full disk; nothing is left of what was written',
  },
  recipe=False,
)


def body(call: command.Call) -> int:
  options = call.options
  origin, target = (command.needed(options, name) for name in ('from', 'to'))
  from specdiff_jax.checkpoints import export
  from specdiff_jax.checkpoints import sources
  from specdiff_jax.drafters import published
  from specdiff_jax.recipes import drafters

  source = _trained(
    drafters.shipped(origin), options.format, drafters.shipped(options.head)
  )
  if options.head and not source:
    raise errors.InputError(
      f'--head is {options.head}, but {origin} is no drafter that `distill` '
      'trained. Give the drafter that this head was trained on.'
    )
  if source and options.adapter:
    raise errors.InputError(
      f'{origin} is a drafter, which takes no --adapter; leave it out.'
    )
  if not source and not options.adapter:
    source = published.open_drafter(origin)
  source = source or sources.open_model(origin, options.adapter)
  with console.whole_or_not(
    'converting (MB)', 'removing what is half written'
  ) as show:

    def progress(written: int, total: int) -> None:
      show(written // 10**6, total // 10**6)

    done = export.convert(
      source,
      target,
      options.format,
      options.dtype,
      progress,
      registry.writers(),
    )
  console.say(f'{target}: written.')
  console.result({'to': target, 'format': options.format, **done})
  return 0


def _trained(path: str, form: str, head: str):
  """Opens a drafter of ours; None for anything else.

  Raises InputError where no other program has its network in this form.
  """
  from specdiff_jax.drafters import drafter_file
  from specdiff_jax.drafters import options

  if not drafter_file.is_one(path):
    return None
  kind = drafter_file.kind(path)
  if kind in (*options.HEADS, options.CONFIDENCE):
    system, field = 'lattice', 'head'
    if kind == options.CONFIDENCE:
      system, field = 'diffuspec', 'diffuspec.confidence'
    raise errors.InputError(
      f'{path}: this is a head of the kind {kind!r} that `distill` trained on a '
      'drafter, and cannot be written in another form. This package serves it: '
      f'--config.system={system} with this file as --config.{field}.'
    )
  family = registry.family_of(kind, path)
  entry, open_one = registry.FAMILIES[family], registry.family(family).source
  if open_one and form in entry.writers:
    return open_one(path, head)
  if open_one:
    raise errors.InputError(
      f'{path}: this is a drafter of the kind {kind!r} that `distill` trained, '
      f'which cannot be written as {form}; take --format='
      f'{" or ".join(entry.writers)}.'
    )
  system = entry.system or 'specdiff'
  raise errors.InputError(
    f'{path}: this is a drafter of the kind {kind!r} that `distill` trained, '
    'and no other program has its network, so that it cannot be written in '
    f'another form ({", ".join(registry.forms())} takes published drafters). '
    f'This package serves it: --config.system={system} with this file as '
    f"--config.drafter, or sd.system({system!r}, verifier, drafter='...') from "
    'Python.'
  )
