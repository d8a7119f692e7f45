"""`distill`: stopped and resumed it comes to the same bits; bad data."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal

import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.cli import console
from specdiff_jax.data import dataset
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import suites
from specdiff_jax.drafters import drafter_file
from specdiff_jax.training import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STEPS = 6


@pytest.fixture
def argv(tiny, data):
  return (
      'distill', tiny, f'--config.data={data}', f'--config.steps={STEPS}',
      '--config.save_every=2',
  )  # fmt: skip


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Where a run that nothing stops goes."""
  return tmp_path_factory.mktemp('whole')


def test_trains_and_its_drafter_decodes(specdiff, argv, whole, tiny):
  run = specdiff(*argv, f'--workdir={whole}')
  assert run.code == 0, run.err
  assert list(run.json)[:4] == ['steps', 'loss', 'tau_eval', 'params_sha256']
  assert run.json['steps'] == STEPS and run.json['tau_eval'] >= 1
  lines = (whole / 'metrics.jsonl').read_text().splitlines()
  assert any('eval' in json.loads(line) for line in lines)
  drafter = f'--config.drafter={whole}/drafter.safetensors'
  done = specdiff('decode', tiny, '--prompt=a', drafter)
  assert done.code == 0, done.err
  again = specdiff(*argv, f'--workdir={whole}')
  assert again.code == 0 and again.json['steps'] == STEPS
  assert again.json['params_sha256'] == run.json['params_sha256']


@pytest.mark.parametrize(
  'kind, loss', [('markov', 'dspark'), ('selector', 'ce')]
)
def test_a_head_is_trained_and_drafts(
  specdiff, argv, whole, tiny, tmp_path, kind, loss
):
  """The drafter stays as it is; the text too, whatever the head drafts."""
  drafter = whole / 'drafter.safetensors'
  before = drafter.read_bytes()
  more = (f'--config.start_from={drafter}', f'--config.head_kind={kind}')
  more += ('--config.head_rank=4', f'--config.loss={loss}', '--config.steps=3')
  run = specdiff(*argv, *more, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  head = tmp_path / 'head.safetensors'
  assert run.json['drafter'] == str(head) and run.json['tau_eval'] >= 1
  tensors, facts = safetensors_io.load(str(head))
  assert facts['kind'] == kind and tensors['network']['successor'].any()
  assert drafter.read_bytes() == before
  texts = [
    specdiff('decode', tiny, '--prompt=a', f'--config.drafter={drafter}', *more)
    for more in (
      ['--config.system=ar'],
      ['--config.system=lattice', f'--config.head={head}'],
    )
  ]
  assert [done.code for done in texts] == [0, 0], texts
  assert texts[0].out == texts[1].out != ''
  # Of another drafter; of too many tokens; a drafter in its place.
  lattice = 'decode', tiny, '--prompt=a', '--config.system=lattice'
  for more, words in (
    ([f'--config.head={head}'], ['head.safetensors', 'draft vocabulary']),
    (['--config.candidates=999'], ['candidates', '999', '257']),
    ([f'--config.head={drafter}'], ['drafter.safetensors', 'a head', kind]),
  ):
    run = specdiff(*lattice, *more)
    assert run.code == 2 and all(word in run.err for word in words), run.err


def test_a_confidence_head_is_trained_and_cuts_drafts(
  specdiff, argv, whole, tiny, tmp_path
):
  drafter = f'{whole}/drafter.safetensors'
  more = f'--config.start_from={drafter}', '--config.steps=3'
  both = '--config.head_kind=confidence', '--config.loss=confidence'
  run = specdiff(*argv, *more, *both, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  head = str(tmp_path / 'head.safetensors')
  line = (tmp_path / 'metrics.jsonl').read_text().splitlines()[0]
  assert 0 < json.loads(line)['overlap'] < 1
  tensors, facts = safetensors_io.load(head)
  assert facts['kind'] == 'confidence' and tensors['network']['weights'].any()
  own = '--config.diffuspec.cps=False', f'--config.diffuspec.confidence={head}'
  runs = [
    specdiff('decode', tiny, '--prompt=a', f'--config.drafter={drafter}', *one)
    for one in (
      ['--config.system=ar'],
      ['--config.system=diffuspec', *own],
      ['--config.system=lattice', f'--config.head={head}'],
    )
  ]
  assert [done.code for done in runs] == [0, 0, 2], runs
  assert runs[0].out == runs[1].out != ''
  assert 'confidence' in runs[2].err and 'markov' in runs[2].err
  run = specdiff(*argv, *more, both[0], f'--workdir={tmp_path}')
  assert run.code == 2 and 'config.loss' in run.err


def test_a_drafter_gets_another_vocabulary(specdiff, argv, whole, tmp_path):
  start = f'--config.start_from={whole}/drafter.safetensors'
  more = start, '--config.steps=1', '--config.new_vocab=9'
  more += ('--config.eval_fraction=0.6',)  # some of which the first learnt from
  run = specdiff(*argv, *more, f'--workdir={tmp_path}/new')
  assert run.code == 0 and 'held-out prompts are among' in run.err, run.err
  path = f'{tmp_path}/new/drafter.safetensors'
  old, _ = safetensors_io.load(f'{whole}/drafter.safetensors')
  new, facts = safetensors_io.load(path)
  assert new['vocab'].shape == (9,) != old['vocab'].shape
  assert json.loads(facts['config'])['vocab'] == 9
  # It goes on with what was chosen, and decodes.
  assert specdiff(*argv, *more, f'--workdir={tmp_path}/new').code == 0
  tiny = argv[1]
  own = '--prompt=a', '--config.system=specdiff', f'--config.drafter={path}'
  plain = specdiff('decode', tiny, '--prompt=a', '--config.system=ar')
  drafted = specdiff('decode', tiny, *own)
  assert drafted.code == 0 and drafted.out == plain.out, drafted.err
  for wrong, words in (
    ([start, '--config.new_vocab=999'], ['new_vocab', '999', '320']),
    (['--config.new_vocab=9'], ['new_vocab', 'start_from', 'network.vocab']),
  ):
    run = specdiff(*argv, *wrong, f'--workdir={tmp_path}/bad')
    assert run.code == 2 and all(word in run.err for word in words), run.err


@pytest.mark.parametrize(
  'more, words',
  [
    ([], ['head_kind', 'start_from', 'empty']),
    (['start_from=a', 'lora_rank=2'], ['head_kind', 'lora_rank', '2']),
    (['start_from=a', 'train_only=b'], ['head_kind', 'train_only', 'b']),
    (
      ['start_from=a', 'network.kind=masked_lm', 'masked_lm.mask_id=1'],
      ['head_kind', 'masked_lm', 'diffusion'],
    ),
    (['head_kind=rnn'], ['head_kind', 'rnn', 'markov']),
    (['head_rank=0'], ['head_rank', '0', 'at least 1']),
  ],
)
def test_heads_that_cannot_be_trained(specdiff, argv, tmp_path, more, words):
  more = [f'--config.{one}' for one in ['head_kind=markov', *more]]
  run = specdiff(*argv, *more, f'--workdir={tmp_path}')
  assert run.code == 2 and all(word in run.err for word in words), run.err


@pytest.mark.parametrize(
  'loss, metric', [('lk', 'overlap'), ('variable_prefix', 'prefix')]
)
def test_other_losses_train(specdiff, argv, tmp_path, loss, metric):
  """One that reads the verifier's law, and one that shows a part of windows."""
  more = (f'--config.loss={loss}', '--config.steps=2')
  more += ('--config.vocab_block=100',)
  run = specdiff(*argv, *more, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  assert run.json['steps'] == 2 and run.json['tau_eval'] >= 1
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[0])[metric] > 0
  other = '--config.lk_eta=1.0', '--config.prefix_base=0.5'
  run = specdiff(*argv, *more, *other, f'--workdir={tmp_path}')
  assert run.code == 2 and ('lk_eta' in run.err) == (loss == 'lk')


def test_a_work_directory_belongs_to_one_run(specdiff, argv, whole):
  assert specdiff(*argv, f'--workdir={whole}').code == 0
  before = (whole / 'drafter.safetensors').read_bytes()
  run = specdiff(*argv, f'--workdir={whole}', '--config.learning_rate=0.5')
  assert run.code == 2 and 'Traceback' not in run.err
  assert 'learning_rate' in run.err and '0.5' in run.err
  # Another dtype of the verifier is another verifier.
  run = specdiff(*argv, f'--workdir={whole}', '--config.dtype=bfloat16')
  assert run.code == 2 and 'dtype was' in run.err
  assert (whole / 'drafter.safetensors').read_bytes() == before


def test_a_mask_decides_a_run(specdiff, argv, data, tmp_path):
  source = dataset.read(str(data))[1]
  texts = [source[index] for index in range(len(source))]
  held = {int(t) for x in texts for t in (*x.prompt, *x.completion)}
  one, other = sorted({*range(256, 320)} - held)[:2]
  more = '--config.network.kind=dflash', '--config.loss=ce', '--config.steps=1'
  more += (f'--workdir={tmp_path}',)
  run = specdiff(*argv, *more, f'--config.masked_lm.mask_id={one}')
  assert run.code == 0, run.err
  run = specdiff(*argv, *more, f'--config.masked_lm.mask_id={other}')
  assert run.code == 2 and f'mask_id was {one}' in run.err


def test_a_drafter_that_cannot_be_shown_a_prefix(specdiff, argv, tmp_path):
  """As it is loaded, whatever the recipe says of a new one."""
  blind = '--config.network.ngram=0', '--config.steps=1'
  assert specdiff(*argv, *blind, f'--workdir={tmp_path}/a').code == 0
  start = f'--config.start_from={tmp_path}/a/drafter.safetensors'
  run = specdiff(
    *argv, start, '--config.loss=variable_prefix', f'--workdir={tmp_path}/b'
  )
  assert run.code == 2 and 'with ngram 0 has no input' in run.err


def test_fewer_steps_than_are_done(specdiff, argv, whole):
  assert specdiff(*argv, f'--workdir={whole}').code == 0
  run = specdiff(*argv, f'--workdir={whole}', '--config.steps=3')
  assert run.code == 2 and f'has {STEPS} steps behind it' in run.err


def test_a_run_belongs_to_its_texts_and_its_start(
  specdiff, argv, tiny, whole, root, tmp_path
):
  assert specdiff(*argv, f'--workdir={whole}').code == 0
  before = (whole / 'drafter.safetensors').read_bytes()
  texts, start = tmp_path / 'texts', tmp_path / 'start.safetensors'
  prompts = f'--prompts={root}/configs/prompts/tiny.jsonl'
  more = f'--workdir={texts}', '--config.temperature=1.0'
  assert specdiff('collect', tiny, prompts, *more).code == 0
  other = f'--config.data={texts}'  # as many
  run = specdiff(*argv, other, f'--workdir={whole}')
  assert run.code == 2 and 'data was' in run.err
  assert (whole / 'drafter.safetensors').read_bytes() == before
  run = specdiff(*argv, other, f'--workdir={tmp_path}/other')
  assert run.code == 0, run.err
  shutil.copy(whole / 'drafter.safetensors', start)
  more = f'--config.start_from={start}', f'--workdir={tmp_path}/second'
  assert specdiff(*argv, *more).code == 0
  shutil.copy(tmp_path / 'other' / 'drafter.safetensors', start)
  run = specdiff(*argv, *more)
  assert run.code == 2 and 'start was' in run.err


def test_a_killed_run_goes_on_exactly(
  specdiff, argv, whole, tmp_path, monkeypatch
):
  sha = specdiff(*argv, f'--workdir={whole}').json['params_sha256']

  @contextlib.contextmanager
  def progress(what, total=None):
    def update(done, total=None, note=''):
      if what == 'distilling' and done == 3:
        os.kill(os.getpid(), signal.SIGTERM)

    yield update

  monkeypatch.setattr(console, 'progress', progress)
  run = specdiff(*argv, f'--workdir={tmp_path}')
  assert run.code == 75 and run.out == '' and 'step 3' in run.err
  monkeypatch.undo()
  shorter = tmp_path.with_name('shorter')
  shutil.copytree(tmp_path, shorter)
  run = specdiff(*argv, f'--workdir={shorter}', '--config.steps=3')
  assert run.code == 0 and run.json['tau_eval'] >= 1  # as any that is finished
  run = specdiff(*argv, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  assert run.json['params_sha256'] == sha
  other = specdiff(*argv, f'--workdir={tmp_path}/other', '--config.seed=1')
  assert other.json['params_sha256'] != sha  # the control


def test_names_of_folders_may_hold_anything(specdiff, argv, data, tmp_path):
  """Also of those with the trajectories, which may be several."""
  mine, workdir = tmp_path / 'br{a,b}', tmp_path / 'run[1]*{c,d} ü'
  shutil.copytree(data, mine)
  argv = *argv, f'--workdir={workdir}', f'--config.data={mine}'
  run = specdiff(*argv, '--config.steps=2')
  assert run.code == 0 and 'learning rate' not in run.err
  run = specdiff(*argv, '--config.steps=4')
  assert run.code == 0 and run.json['steps'] == 4, run.err
  assert (
    'Goes on after step 2: the learning rate there is 0.0015, on the cosine to '
    '0 at config.steps=4; it had come to 0 when the drafter there was finished,'
  ) in run.err
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['2', '4']
  shutil.rmtree(workdir / 'checkpoints' / '4')
  (workdir / 'metrics.jsonl').write_bytes(b'garbage\n')
  again = specdiff(*argv, '--config.steps=4')
  assert again.code == 0 and '1 damaged lines' in again.err
  assert again.json['params_sha256'] == run.json['params_sha256']


def test_a_full_disk_loses_nothing(
  specdiff, argv, whole, tmp_path, monkeypatch
):
  sha = specdiff(*argv, f'--workdir={whole}').json['params_sha256']

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  def write(self, step, values, real=metrics.MetricsWriter.write):
    if step >= 4:
      monkeypatch.setattr(metrics, '_append', full)
    real(self, step, values)

  monkeypatch.setattr(metrics.MetricsWriter, 'write', write)
  run = specdiff(*argv, f'--workdir={tmp_path}')
  monkeypatch.undo()
  assert run.code == 2 and 'Traceback' not in run.err, run
  assert 'space' in run.err
  run = specdiff(*argv, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  assert run.json['params_sha256'] == sha


@pytest.mark.parametrize(
  'more, words',
  [
    (['--config.data=nowhere'], ['nowhere', 'collect']),
    (['--config.data=nowhere.jsonl'], ['nowhere.jsonl']),
    (['--config.data='], ['config.data']),
    (['--config.verifier=random:other'], ['other']),
    (['--config.mesh=(1, 99)'], ['mesh', '99']),
    (['--config.mesh=(1, 2, 3)'], ['mesh']),
    (['--config.steps=0'], ['steps']),
    (['--config.learning_rate=-1.0'], ['learning_rate']),
    (['--config.gamma=500'], ['gamma', '500']),
    (['--config.loss=rejection'], ['rejection', 'law_temperature']),
    (
      ['--config.loss=elbo', '--config.network.ngram=0'],
      ['elbo', 'ngram'],
    ),
    (
      ['--config.eval_prompts=("{root}/configs/prompts/tiny.jsonl",)'],
      ['evaluation prompts', 'training prompts'],
    ),
  ],
)
def test_bad_settings(specdiff, argv, root, tmp_path, more, words):
  more = [arg.format(root=root) for arg in more]
  run = specdiff(*argv, f'--workdir={tmp_path}', *more)
  assert run.code == 2, run
  assert run.out == '' and 'Traceback' not in run.err
  for word in words:
    assert word in run.err, (word, run.err)


def test_data_of_another_verifier(specdiff, argv, data, tmp_path):
  manifest = json.loads((data / 'dataset' / 'manifest.json').read_text())
  right, wrong = manifest['header']['verifier'], '0' * 16
  mine = tmp_path / 'trajectories'
  shutil.copytree(data, mine)
  journal, changed = mine / 'journal.jsonl', []
  for line in journal.read_text().replace(right, wrong).splitlines():
    fields = json.loads(line)  # an older one, without the checksum
    changed.append(json.dumps({n: fields[n] for n in fields if n != 'sum'}))
  journal.write_text('\n'.join(changed) + '\n')
  run = specdiff(*argv, f'--workdir={tmp_path}/w', f'--config.data={mine}')
  assert run.code == 2, run
  assert right in run.err and wrong in run.err


def test_a_drafter_says_what_it_was_trained_on(specdiff, whole, tiny):
  """Prompts of it are told of in a bench, and refused of a suite."""
  path = f'{whole}/drafter.safetensors'
  seen = drafter_file.trained_on(path)
  prompts = suites.read('mixed', f'{ROOT}/configs/prompts/tiny.jsonl')
  held_out = [p for p in prompts if prompts_lib.text_hash(p.text) not in seen]
  assert 0 < len(held_out) < len(prompts) == len(seen) + len(held_out)
  flags = 'bench', tiny, '--systems=ar,specdiff', '--rounds=1', '--limit=30'
  flags += (f'--config.drafter={path}',)
  where = f'{ROOT}/configs/prompts/tiny.jsonl'
  run = specdiff(*flags, f'--prompts={where}')
  assert run.code == 0 and 'not held out' in run.err
  assert len(run.json['trained_on']) == len(seen)
  run = specdiff(*flags, '--suite=mixed', f'--path={where}')
  assert run.code == 2 and 'tiny-' in run.err
