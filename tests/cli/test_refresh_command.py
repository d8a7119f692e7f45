"""Drafters refreshed where they fail, trained further in part, and adapted."""

import jax
import numpy as np
import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.data import dataset

SAMPLED = '--config.temperature=1.0'
MASKED_LM = (
    '--config.network.kind=masked_lm', '--config.masked_lm.mask_id=300',
)  # fmt: skip
ALL = 320  # tokens of the tiny verifier


@pytest.fixture(scope='module')
def made(tmp_path_factory, root):
  """Trajectories with the whole law of each token, and a drafter of them."""
  from specdiff_jax import __main__

  folder = tmp_path_factory.mktemp('refresh')
  tiny = f'--config={root}/configs/tiny.py:smoke'
  for argv in (
      ('collect', f'--prompts={root}/configs/prompts/tiny.jsonl', SAMPLED,
       '--config.completions=2', f'--config.store_top_k={ALL}',
       f'--workdir={folder}/first'),
      ('distill', f'--config.data={folder}/first', '--config.steps=3',
       '--config.loss=soft_streak', '--config.stored_law=True',
       f'--workdir={folder}/run'),
  ):  # fmt: skip
    assert __main__.main([argv[0], tiny, *argv[1:]]) == 0
  return folder


def network(path):
  tensors, _ = safetensors_io.load(str(path))
  return tensors['network'], tensors['vocab']


def test_refreshed_and_trained_on(specdiff, made, tiny, tmp_path):
  drafter = made / 'run' / 'drafter.safetensors'
  argv = (
      'collect', tiny, f'--refresh={drafter}', f'--from={made}/first',
      '--config.refresh_anchors=1', f'--config.store_top_k={ALL}',
  )  # fmt: skip
  run = specdiff(*argv, f'--workdir={tmp_path}/greedy')
  assert run.code == 2 and 'temperature' in run.err
  int8 = specdiff(
    *argv, SAMPLED, '--config.int8=verifier', f'--workdir={tmp_path}/int8'
  )
  assert int8.code == 2 and 'not rounded' in int8.err
  run = specdiff(*argv, SAMPLED, f'--workdir={tmp_path}/more')
  assert run.code == 0, run.err
  header, more = dataset.read(str(tmp_path / 'more'))
  assert header['refresh']['anchors'] == 1
  first = dataset.read(str(made / 'first'))[1]
  by_id = {first[i].id: first[i] for i in range(len(first))}
  assert len(more) == run.json['trajectories'] > 2
  changed = 0
  for index in range(len(more)):
    record = more[index]
    name, _, anchor = record.id.rpartition('@')
    whole = np.concatenate([by_id[name].prompt, by_id[name].completion])
    size = len(by_id[name].prompt) + int(anchor)
    np.testing.assert_array_equal(record.prompt, whole[:size])
    assert record.completion[0] == whole[size]
    assert record.top_ids.shape == (len(record.completion), ALL)
    rest = whole[size : size + len(record.completion)]
    changed += not np.array_equal(record.completion, rest)
  assert changed > len(more) // 2  # others than what stood there
  again = specdiff(*argv, SAMPLED, f'--workdir={tmp_path}/more')
  assert again.code == 0 and again.json['tokens'] == 0

  data = f'--config.data={made}/first,{tmp_path}/more'
  run = specdiff(
      'distill', tiny, data, '--config.steps=3', '--config.loss=soft_streak',
      '--config.stored_law=True', f'--config.start_from={drafter}',
      '--config.lora_rank=2', '--config.train_only=query',
      '--config.learning_rate=0.05', f'--workdir={tmp_path}/on',
  )  # fmt: skip
  assert run.code == 0, run.err
  (old, vocab), (new, new_vocab) = (
    network(drafter),
    network(tmp_path / 'on' / 'drafter.safetensors'),
  )
  np.testing.assert_array_equal(vocab, new_vocab)
  ranks = {}

  def compare(path, before, after):
    change = np.float32(after) - np.float32(before)
    if change.any():
      values = np.linalg.svd(change, compute_uv=False)
      # Of rank 2, but for what bfloat16 rounds.
      ranks[path[-1].key] = int((values > 0.05 * values[0]).sum())

  jax.tree_util.tree_map_with_path(compare, old, new)
  assert ranks == {'query': 2}  # all else is as it was, to the bit


def test_a_verifier_adapted_to_diffusion(specdiff, made, tiny, tmp_path):
  """From the ELBO of whole texts to windows to text, which is exact."""
  argv = (
      'distill', tiny, *MASKED_LM, f'--config.data={made}/first',
      '--config.eval_limit=1', '--config.windows=2', '--config.steps=1',
  )  # fmt: skip
  run = specdiff(*argv, '--config.loss=elbo', f'--workdir={tmp_path}/elbo')
  assert run.code == 0, run.err
  start = f'--config.start_from={tmp_path}/elbo/drafter.safetensors'
  run = specdiff(*argv, start, f'--workdir={tmp_path}/streak')
  assert run.code == 0 and run.json['tau_eval'] >= 1, run
  drafter = f'--config.drafter={tmp_path}/streak/drafter.safetensors'
  texts = [
    specdiff('decode', tiny, '--prompt=a', drafter, f'--config.system={name}')
    for name in ('ar', 'specdiff')
  ]
  assert [done.code for done in texts] == [0, 0], texts
  assert texts[0].out == texts[1].out != ''


@pytest.mark.parametrize(
  'more, words',
  [
    (MASKED_LM[:1], ['mask_id']),
    ((*MASKED_LM, '--config.loss=variable_prefix'), ['variable_prefix']),
    ((*MASKED_LM, '--config.anneal_fraction=2.0'), ['anneal_fraction']),
    (['--config.train_only=nobody'], ['train_only', 'nobody', 'query']),
    (['--config.train_only=('], ['train_only', 'regular']),
    (['--config.train_only=norm', '--config.lora_rank=2'], ['matrix']),
    (['--config.lora_rank=-1'], ['lora_rank']),
    (['--config.start_from=nowhere.safetensors'], ['nowhere']),
    (
      [
        '--config.loss=kl',
        '--config.stored_law=True',
        '--config.law_temperature=0.5',
      ],
      ['store_top_k', '0.5'],
    ),
  ],
)
def test_bad_settings(specdiff, made, tiny, tmp_path, more, words):
  run = specdiff(
    'distill',
    tiny,
    f'--config.data={made}/first',
    f'--workdir={tmp_path}',
    *more,
  )
  assert run.code == 2 and 'Traceback' not in run.err, run
  for word in words:
    assert word in run.err
