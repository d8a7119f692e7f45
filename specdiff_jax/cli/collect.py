"""`collect`: the verifier's own completions, to train a drafter on."""

import signal

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import recipe

# What `distill` reads too, and a refresh needs to run a drafter.
_REFRESH = (
    'distributed', 'join_timeout', 'tokens', 'windows', 'eval_fraction',
    'vocab_block', 'network',
)  # fmt: skip

_FLAGS = {
  'workdir': flag.Flag('where the trajectories go. Needed'),
  **flag.FILE,
  'refresh': flag.Flag(
    'a drafter, as config.drafter has it: instead of prompts, continue the '
    'trajectories of --from anew where this drafter fails on them'
  ),
  'from': flag.Flag(
    'the work directory of the trajectories that --refresh continues'
  ),
}

COMMAND = command.Command(
  name='collect',
  what="""
    Completes every prompt with the verifier and keeps what a drafter learns
    from: prompt, completion with its end token, temperature, seed, and the
    verifier's fingerprint. Use the temperature, the chat template and its
    arguments (config.template) that will be served. The drafted systems collect
    faster than plain decoding and get the same tokens (under config.rule=match).

    WORKDIR/journal.jsonl grows as prompts are done, and a run that was stopped
    goes on where it was, with more prompts or completions too; at the end
    WORKDIR/dataset is made of it (TFDS, array_record), without equal
    completions of one prompt. With config.distributed every process completes
    its share into a journal of its own in the same folder; the next run may
    have another number of processes.

    --refresh walks through trajectories as serving does with that drafter.
    Where few of its tokens are accepted it collects other continuations of the
    prefix, which `distill` learns from beside the first ones
    (--config.data=FIRST,REFRESHED). It wants a temperature above 0.

    The last line of stdout is one JSON object: prompts, tokens, tokens_per_s,
    trajectories, duplicates (left out of the dataset), verifier, workdir.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING, groups.Collecting)
  | recipe.described(
    groups.Bench, *recipe.TRAINING, only=('prompts', *_REFRESH)
  ),
  examples=(
    'collect --config=configs/distill_smollm2.py --prompts train.jsonl '
    '--workdir runs/trajectories',
    'collect --config=configs/tiny.py --workdir runs/tiny '
    '--prompts configs/prompts/tiny.jsonl --config.temperature=1.0 '
    '--config.completions=4',
    'collect --config=configs/tiny.py --workdir runs/refreshed '
    '--refresh runs/tiny/drafter.safetensors --from runs/tiny/trajectories '
    '--config.temperature=1.0',
  ),
  exit_codes={
    2: 'bad input, or a full disk: nothing written is lost, run it again',
    130: 'interrupted; run it again to go on',
  },
)


def body(call: command.Call) -> int:
  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import collecting as build_collecting
  from specdiff_jax.recipes import decoding
  from specdiff_jax.recipes import runs
  from specdiff_jax.recipes import training as build_training

  config, options = call.config, call.options
  workdir = command.needed(options, 'workdir')
  build_collecting.check(config)
  build_training.start(config)
  if processes.process_count() > 1:
    # jax keeps it for the next step, and here is none; nothing written is lost.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  if options.refresh:
    folder = command.needed(options, 'from')
    command.unread(
      options,
      ('prompts', 'limit'),
      '--refresh continues the trajectories of --from',
    )
    checkpoint = command.verifier(config)
    wanted, facts = build_collecting.refreshed(
      config, checkpoint, options.refresh, folder
    )
    found = runs.collect(
      config, checkpoint, wanted, workdir, facts=facts, report=console
    )
  else:
    command.unread(options, ('from',), 'it is what --refresh continues')
    prompts = decoding.prompts(config, options.prompts, options.limit)
    checkpoint = command.verifier(config)
    found = runs.complete(config, checkpoint, prompts, workdir, report=console)
  if processes.is_first():
    console.result(found)
  return 0
