"""Log-probabilities of completions against a pass over the whole text."""

import json

import numpy as np
import pytest
import whole_text

import specdiff_jax as sd
from specdiff_jax.testing import models

PROMPTS = [[5, 6, 7], [9, 8, 9, 8, 9]]
DRAFTER = {'gamma': 3, 'drafter': 'random', 'network': {'layers': 1}}
SYSTEMS = {
  'lookup': {'gamma': 3},
  'tree': DRAFTER | {'drafts': 2, 'budget': 6},
  'adaptive': DRAFTER | {'gammas': (3,), 'budgets': (6,)},
}


def made(name: str, **more):
  system = sd.system(
    name,
    models.tiny_verifier(),
    batch=2,
    prompt_buckets=(8,),
    max_new_tokens=9,
    chat=False,
    **SYSTEMS[name],
  )
  return system.generate(PROMPTS, temperature=0.8, top_k=20, **more)


def of_text(prompt, tokens) -> np.ndarray:
  verifier = models.tiny_verifier()
  ids = [*prompt, *tokens]
  logits = whole_text.logits(verifier.config, verifier.params, ids)
  return -whole_text.losses(logits, ids)[len(prompt) - 1 :]


@pytest.mark.parametrize('name', SYSTEMS)
def test_they_are_those_of_the_text(name):
  for prompt, one in zip(PROMPTS, made(name, logprobs=True)):
    want = of_text(prompt, one.tokens)
    assert len(one.logprobs) == len(one.tokens) == 9
    np.testing.assert_allclose(one.logprobs, want, atol=1e-4)
    # Those of the neighbouring positions are far from them.
    assert np.abs(np.roll(want, 1) - one.logprobs).max() > 0.1


def test_they_change_no_token():
  for one, other in zip(made('lookup', logprobs=True), made('lookup')):
    assert one.tokens == other.tokens and other.logprobs is None


def test_of_a_text_that_is_cut(specdiff, tiny, tmp_path):
  """`decode --out` keeps as many as tokens, and goes on only with the same."""
  prompts, out = tmp_path / 'p.jsonl', tmp_path / 'o.jsonl'
  prompts.write_text('{"id": "a", "prompt": "one two"}\n')
  argv = 'decode', tiny, f'--prompts={prompts}', f'--out={out}'
  argv += ('--config.system=lookup',)
  assert specdiff(*argv, '--logprobs').code == 0
  line = json.loads(out.read_text())
  assert len(line['logprobs']) == len(line['tokens']) > 0
  assert all(x < 0 for x in line['logprobs'])
  run = specdiff(*argv)
  assert run.code == 2 and 'logprobs' in run.err


def test_they_need_a_file(specdiff, tiny):
  run = specdiff('decode', tiny, '--prompt=hi', '--logprobs')
  assert run.code == 2 and '--out' in run.err
