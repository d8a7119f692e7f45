"""`sweep`: every point of the grid runs once, whatever stops or fails."""

import contextlib
import json
import os
import shutil
import signal

import pytest

from specdiff_jax.cli import console
from specdiff_jax.cli import sweep
from specdiff_jax.core import locks
from specdiff_jax.data import journal
from specdiff_jax.recipes import runs
from specdiff_jax.tools.sweep import runner
from specdiff_jax.training import features


@pytest.fixture
def argv(tiny, data):
  return (
      'sweep', tiny, f'--config.data={data}', '--config.steps=2',
      '--config.save_every=1',
  )  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
  """The names of the directories that `distill` trains in."""
  names, real = [], runs.train

  def train(config, checkpoint, workdir, *args, **more):
    names.append(os.path.basename(workdir))
    return real(config, checkpoint, workdir, *args, **more)

  monkeypatch.setattr(runs, 'train', train)
  return names


def test_a_directory_is_swept_by_one(specdiff, argv, tmp_path, trained):
  with locks.held(str(tmp_path / 'sweep.lock')):
    run = specdiff(*argv, f'--workdir={tmp_path}', '--grid=loss=streak,ce')
  assert run.code == 2 and not trained
  assert 'Another process' in run.err and 'sweep.lock' in run.err


def test_runs_compares_and_grows(
  specdiff, argv, tmp_path, trained, monkeypatch
):
  passes, real = [], features.forward
  monkeypatch.setattr(
    features, 'forward', lambda *a: passes.append(a) or real(*a)
  )
  workdir = f'--workdir={tmp_path}'
  run = specdiff(*argv, workdir, '--grid=loss=streak,ce')
  assert run.code == 0, run.err
  assert trained == ['loss-streak', 'loss-ce']
  line = run.json
  assert (line['runs'], line['done'], line['failed']) == (2, 2, 0)
  assert line['best']['loss'] in ('streak', 'ce') and line['best_tau'] >= 1
  results = json.loads((tmp_path / 'results.json').read_text())['runs']
  assert [r['values']['loss'] for r in results] == ['streak', 'ce']
  assert results[0]['params_sha256'] != results[1]['params_sha256']
  assert len(results[0]['evaluation']['surv']) == 4
  assert (tmp_path / 'sweep.png').stat().st_size > 1000
  assert 'agree late' in run.out and 'done' in run.out
  shared = len(passes)

  # Each is what `distill` makes of the same config.
  alone = specdiff('distill', *argv[1:], f'--workdir={tmp_path}/alone')
  assert alone.json['params_sha256'] == results[0]['params_sha256']
  assert len(passes) == 2 * shared  # the second run of the sweep made none

  # Started again it runs what is new; other settings are refused there.
  trained.clear()
  larger = '--grid=loss=ce', '--grid=seed=0,1'
  old, new = tmp_path / 'loss-ce', tmp_path / 'loss-ce_seed-0'
  old.rename(new)
  (tmp_path / 'loss-streak').rename(tmp_path / 'loss-ce_seed-1')
  run = specdiff(*argv, workdir, *larger)
  assert run.code == 1 and trained == ['loss-ce_seed-1']
  assert run.json['failed'] == 1 and run.json['best']['seed'] == '0'
  assert 'done before' in run.err and "'streak'" in run.err


def test_a_failing_run_is_marked_and_the_others_go_on(
  specdiff, argv, tmp_path, monkeypatch
):
  real = runs.figures
  monkeypatch.setattr(
    runs,
    'figures',
    lambda run: real(run) | ({'loss': None} if run.steps == 1 else {}),
  )
  grids = '--grid=verifier=random:none,random:tiny', '--grid=steps=1,2'
  run = specdiff(*argv, f'--workdir={tmp_path}', *grids)
  assert run.code == 1 and 'Traceback' not in run.err, run
  assert (run.json['done'], run.json['failed']) == (1, 3)
  assert run.json['best'] == {'verifier': 'random:tiny', 'steps': '2'}
  assert run.out.count('FAILED') == 3
  for word in ("'none'", 'not a number', 'learning_rate'):
    assert word in run.err
  done = tmp_path.glob('*/result.json')  # what failed is run again
  assert [path.parent.name for path in done] == ['verifier-random-tiny_steps-2']


def test_other_trajectories_are_not_done_before(
  specdiff, argv, data, tmp_path, trained
):
  texts, flags = tmp_path / 'texts', [f'--workdir={tmp_path / "sweep"}']
  shutil.copytree(data, texts)
  flags += [f'--config.data={texts}', '--grid=loss=ce']
  assert specdiff(*argv, *flags).code == 0
  again = specdiff(*argv, *flags)
  assert again.code == 0 and trained == ['loss-ce']
  (tmp_path / 'sweep' / 'loss-ce' / 'drafter.safetensors').unlink()
  again = specdiff(*argv, *flags)  # it comes back from the checkpoint
  assert again.code == 0 and trained.pop() == 'loss-ce'
  assert (tmp_path / 'sweep' / 'loss-ce' / 'drafter.safetensors').exists()
  journal_file = texts / 'journal.jsonl'
  lines = journal_file.read_text().splitlines(keepends=True)
  journal_file.write_text(''.join(lines[:-1]))
  run = specdiff(*argv, *flags)
  assert 'done before' not in run.err and trained == ['loss-ce'] * 2


def test_a_stopped_sweep_goes_on(specdiff, argv, tmp_path, monkeypatch):
  @contextlib.contextmanager
  def progress(what, total=None):
    def update(done, total=None, note=''):
      if what.startswith('[1/1]') and done == 1:
        os.kill(os.getpid(), signal.SIGTERM)

    yield update

  grids = '--grid=loss=ce', f'--workdir={tmp_path}'
  monkeypatch.setattr(console, 'progress', progress)
  run = specdiff(*argv, *grids)
  assert run.code == 75 and run.out == '' and 'step 1' in run.err
  monkeypatch.undo()
  run = specdiff(*argv, *grids)
  assert run.code == 0 and run.json['done'] == 1
  lines = (tmp_path / 'loss-ce' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [2, 2]  # and `eval`


@pytest.mark.parametrize(
  'harm',
  [
    lambda text: text.replace('0.5', '0.7'),
    lambda text: '{"config": {}, "result": 7}',
    lambda text: '{"config": {}, "result": {"evaluation": []}}',
    lambda text: text[:-9],
  ],
)
def test_damaged_figures_are_no_finished_run(tmp_path, capsys, harm):
  path = tmp_path / 'result.json'
  result = {'loss': 0.5, 'tau_eval': 1.5, 'evaluation': {'agree': [0.5]}}
  made = journal.with_sum({'config': {}, 'result': result})
  path.write_text(json.dumps(made))
  assert runner.finished(str(path), console)['result'] == result
  path.write_text(harm(path.read_text()))
  assert not runner.finished(str(path), console)
  assert 'is damaged' in capsys.readouterr().err


def test_points_of_a_grid(tiny):
  specs = ['network.layers=1,2', 'network.features=(0,1),(1,)', 'loss=ce']
  found = sweep.points([tiny], specs)
  assert [
    (network.layers, network.features)
    for network in (p.config.training.network for p in found)
  ] == [(1, (0, 1)), (1, (1,)), (2, (0, 1)), (2, (1,))]
  assert found[0].name == 'network.layers-1_network.features-0-1_loss-ce'
  assert {p.config.objective.loss for p in found} == {'ce'}
  assert sweep.points([tiny], ['decay=1'])[0].config.objective.decay == 1.0


@pytest.mark.parametrize(
  'grids, words',
  [
    ([], ['--grid', 'distill']),
    (['los=ce'], ["'los'", 'loss']),
    (['network.depth=1'], ["'network.depth'"]),
    (['loss='], ['loss=', 'FIELD=VALUE']),
    (['loss'], ["'loss'", 'FIELD=VALUE']),
    (['loss=ce,'], ['loss=ce,']),
    (['=ce'], ['FIELD=VALUE']),
    (['loss=ce', 'loss=kl'], ["'loss'", 'twice', 'loss=ce,kl']),
    (['decay=1,1.0'], ['decay=1', 'same run']),
    (['gamma=4,four'], ['gamma', 'four']),
    (['gamma=4,0'], ['gamma', '0']),
    (['loss=ce,hinge'], ['loss', 'hinge', 'streak']),
  ],
)
def test_bad_grids(specdiff, argv, tmp_path, grids, words):
  own = (f'--grid={spec}' for spec in grids)
  run = specdiff(*argv, f'--workdir={tmp_path}', *own)
  assert run.code == 2, run
  assert run.out == '' and 'Traceback' not in run.err
  assert not list(tmp_path.iterdir())
  for word in words:
    assert word in run.err, (word, run.err)
