"""Collecting by one process, by two, and by two that are killed, then three.

  python tests/programs/shared_program.py FOLDER

Prints whether all come to the same trajectories. Not in the suite: it starts
eight processes; `tests/cli/test_collect_command.py` plays two in one.
"""

import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'support')]

import processes

from specdiff_jax.data import dataset
from specdiff_jax.data import trajectories

ARGUMENTS = (
    'collect', f'--config={ROOT}/configs/tiny.py',
    f'--prompts={ROOT}/configs/prompts/tiny.jsonl', '--config.batch=2',
    '--config.system=lookup', '--config.temperature=1.0',
    '--config.completions=4', '--config.store_top_k=4',
)  # fmt: skip


def found(workdir):
  _, source = dataset.read(workdir)
  return {
      item.id: [part.tolist() for part in (
          item.prompt, item.completion, item.top_ids)]
      for item in (source[i] for i in range(len(source)))
  }  # fmt: skip


def together(count, workdir, kill_at=0):
  """Runs `count` processes; returns the exit codes."""
  running = processes.start_together(
    count, [*ARGUMENTS, f'--workdir={workdir}']
  )
  while kill_at and len(trajectories.lengths(workdir)) < kill_at:
    time.sleep(0.05)
  for process in running * bool(kill_at):
    process.kill()
  return [processes.finished(process)[0] for process in running]


def main(folder):
  alone = processes.start([*ARGUMENTS, f'--workdir={folder}/one'])
  codes = {'one': [processes.finished(alone)[0]]}
  codes['two'] = together(2, f'{folder}/two')
  codes['killed'] = together(2, f'{folder}/three', kill_at=12)
  there = len(trajectories.lengths(f'{folder}/three'))
  codes['three'] = together(3, f'{folder}/three')
  wanted = found(f'{folder}/one')
  print(json.dumps({
      'codes': codes,
      'trajectories': len(wanted),
      'there_when_killed': there,
      'equal': [found(f'{folder}/{name}') == wanted for name in codes
                if name not in ('one', 'killed')],
  }))  # fmt: skip


if __name__ == '__main__':
  main(sys.argv[1])
