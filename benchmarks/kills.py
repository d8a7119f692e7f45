"""Kills a run at random moments until it is done; compares what it yields.

  python benchmarks/kills.py KILLS STEPS WORKDIR [ARGUMENT...]

Runs `distill` of configs/tiny.py over random texts, with a checkpoint every
second step, once in one go and once with KILLS SIGKILLs, a half of them while
a checkpoint is being written. The last line is a JSON object: how many kills,
during saves too, and whether params, loss, evaluation and lines of metrics are
the very same. ARGUMENTs go to `distill`, such as --config.mesh='(2,2)' under
JAX_NUM_CPU_DEVICES=4.
"""

import json
import pathlib
import random
import signal
import sys
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent / 'tests'
sys.path.extend([str(TESTS / 'support'), str(TESTS / 'programs')])

import processes  # noqa: E402

SAME = ('steps', 'loss', 'params_sha256', 'evaluation')


def command(workdir, steps, more):
  return [
      'distill', '--config=configs/tiny.py:smoke',
      f'--config.data={workdir.parent}/data', f'--workdir={workdir}',
      '--config.batch=8', '--config.tokens=48', f'--config.steps={steps}',
      '--config.save_every=2', '--config.log_every=1', *more,
  ]  # fmt: skip


def saving(workdir):
  """Whether a checkpoint is being written."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any('tmp' in p.name for p in folder.iterdir())


def progress(workdir):
  path = workdir / 'metrics.jsonl'
  return path.stat().st_mtime_ns if path.exists() else 0


def killed(process, workdir, during_save, moment):
  """Kills a process once it trains; returns whether it was saving, or None."""
  before = progress(workdir)
  while progress(workdir) == before and process.poll() is None:
    time.sleep(0.01)
  time.sleep(moment.uniform(0, 1.5))
  while during_save and not saving(workdir) and process.poll() is None:
    time.sleep(0.0005)
  if during_save:
    time.sleep(moment.uniform(0, 0.02))
  was_saving = saving(workdir)
  process.kill()
  code, _, err = processes.finished(process)
  assert code in (0, -signal.SIGKILL), err[-3000:]
  return None if code == 0 else was_saving


def main(kills, steps, workdir, more):
  import meshes_program

  from specdiff_jax.checkpoints import presets

  workdir.mkdir(parents=True)
  checkpoint = presets.random('tiny', 'float32')
  meshes_program.write_trajectories(workdir / 'data', checkpoint)
  results = []
  moment, found = random.Random(0), []
  for name in ('whole', 'killed'):
    own = workdir / name
    while name == 'killed' and len(found) < kills:
      process = processes.start(command(own, steps, more))
      was_saving = killed(process, own, len(found) % 2, moment)
      if was_saving is None:
        break  # done before it could be killed
      found.append(was_saving)
      print(f'{len(found)} killed; saving: {was_saving}', file=sys.stderr)
    ended = processes.finished(processes.start(command(own, steps, more)), 900)
    assert ended[0] == 0, ended[2][-3000:]
    result = json.loads(ended[1].splitlines()[-1])
    lines = [
      {k: v for k, v in line.items() if not k.endswith('per_s')}
      for line in processes.lines(own / 'metrics.jsonl')
    ]
    results.append({n: result[n] for n in SAME} | {'lines': lines})
  whole, other = results
  print(json.dumps({
      'kills': len(found),
      'during_saves': sum(found),
      'steps': whole['steps'],
      'same': {name: whole[name] == other[name] for name in whole},
      'params_sha256': other['params_sha256'],
  }))  # fmt: skip


if __name__ == '__main__':
  main(*map(int, sys.argv[1:3]), pathlib.Path(sys.argv[3]), sys.argv[4:])
