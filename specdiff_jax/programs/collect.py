"""`collect`: the verifier's own completions, to train a drafter on."""

import time

from absl import flags

from specdiff_jax.programs import command
from specdiff_jax.programs import console
from specdiff_jax.programs import fields


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string(
      'workdir', None, 'where the trajectories go. Needed', flag_values=own
  )
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


COMMAND = command.Command(
    name='collect',
    what="""
    Completes every prompt with the verifier and keeps what a drafter learns
    from: prompt, completion with its end token, temperature, seed, and the
    verifier's fingerprint. Use the temperature and chat template that will be
    served.

    WORKDIR/journal.jsonl grows prompt by prompt, and a run that was stopped
    goes on where it was; at the end WORKDIR/dataset is made of it (TFDS,
    array_record). The last line of stdout is one JSON object: prompts,
    tokens, tokens_per_s, verifier, workdir.
    """,
    define=_define,
    fields=fields.DECODING | {'prompts': fields.BENCH['prompts']},
    examples=(
        'collect --config=configs/distill_smollm2.py --prompts train.jsonl '
        '--workdir runs/trajectories',
        'collect --config=configs/tiny.py --workdir runs/tiny '
        '--prompts configs/prompts/tiny.jsonl',
    ),
    exit_codes={
        0: 'done',
        2: 'bad input, or a full disk: nothing written is lost, run it again',
        130: 'interrupted; run it again to go on',
    },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  from specdiff_jax import build

  options = call.options
  workdir = command.needed(options, 'workdir')
  build.check(call.config)
  prompts = build.prompts(call.config, options.prompts, options.limit)
  checkpoint = command.verifier(call.config)
  console.result(into(call.config, checkpoint, prompts, workdir))
  return 0


def into(config, checkpoint, prompts, workdir: str, system: str = '') -> dict:
  """Collects what is missing in `workdir`; returns the closing figures.

  `system` drafts, else the one of the config.
  """
  from specdiff_jax import build
  from specdiff_jax.data import trajectories

  start = time.perf_counter()
  with console.progress('collecting', len(prompts)) as show:

    def progress(done: int, total: int, tokens: int) -> None:
      speed = tokens / (time.perf_counter() - start)
      show(done, total, f'{speed:.0f} tokens/s')

    tokens = build.collect(
        config, checkpoint, prompts, workdir, progress, system
    )
  seconds = time.perf_counter() - start
  trajectories.build_dataset(workdir)
  return {
      'prompts': len(prompts),
      'tokens': tokens,
      'tokens_per_s': round(tokens / seconds, 3),
      'verifier': checkpoint.fingerprint,
      'workdir': workdir,
  }
