"""Collecting: resumable, and the same in whatever order."""

import dataclasses
import errno
import os

import numpy as np
import pytest

from specdiff_jax.collecting import collect
from specdiff_jax.core import errors
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import prompts
from specdiff_jax.data import trajectories

HEADER = {
  'verifier': 'abc',
  'temperature': 0.5,
  'top_k': 3,
  'top_p': 0.9,
  'seed': 4,
}
PROMPTS = [prompts.Prompt(f'p{i}', 'x' * (1 + i * 7 % 11)) for i in range(21)]


def encode(prompt):
  return list(prompt.text.encode())


class Echo:
  """Completes prompts with their reverse, the last one first.

  Fails before prompt number `fails_at`.
  """

  def __init__(self, fails_at=None, error=KeyboardInterrupt()):
    self.made = []
    self._fails_at = fails_at
    self._error = error

  def __call__(self, requests, on_done):
    for request in requests[::-1]:
      if len(self.made) == self._fails_at:
        raise self._error
      self.made.append(request.id)
      on_done(request.id, np.array(request.prompt[::-1], np.int32))


def run(workdir, generate, some=None, **options):
  """Returns what progress said, and what the journal held each time."""
  steps = []
  with trajectories.Journal(str(workdir), HEADER) as journal:
    wanted = collect.requests_of(PROMPTS if some is None else some, encode, 99)
    collect.collect(
      wanted,
      generate,
      journal,
      lambda *step: steps.append((*step, len(journal.ids()))),
      **options,
    )
  return steps


def collected(workdir):
  with trajectories.Journal(str(workdir), HEADER):  # it is cut, if it has to be
    return {record.id: record for record in trajectories.every(str(workdir))}


def test_every_prompt_is_completed_once(tmp_path):
  generate = Echo()
  steps = run(tmp_path, generate)
  records = collected(tmp_path)
  assert records.keys() == {prompt.id for prompt in PROMPTS}
  assert generate.made == [prompt.id for prompt in PROMPTS[::-1]]
  for prompt in PROMPTS:
    record = records[prompt.id]
    assert record.prompt.tolist() == encode(prompt)
    assert record.completion.tolist() == encode(prompt)[::-1]
    assert record.prompt_hash == prompts.text_hash(prompt.text)
    assert (record.temperature, record.top_k, record.top_p, record.seed) == (
      0.5,
      3,
      0.9,
      4,
    )
  assert steps[0] == (0, 21, 0, 0)
  assert steps[-1] == (21, 21, sum(len(p.text) for p in PROMPTS), 21)
  assert [(done, disk) for done, _, _, disk in steps] == [
    (i, i) for i in range(22)
  ]


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('dead')])
def test_a_stopped_run_goes_on(tmp_path, error):
  with pytest.raises(type(error)):
    run(tmp_path / 'a', Echo(8, error))
  assert len(collected(tmp_path / 'a')) == 8
  again = Echo()
  steps = run(tmp_path / 'a', again)
  assert steps[0] == (8, 21, 0, 8) and steps[-1][:2] == (21, 21)
  assert len(again.made) == 13
  run(tmp_path / 'b', Echo())
  one, other = collected(tmp_path / 'a'), collected(tmp_path / 'b')
  assert one.keys() == other.keys()
  assert all(
    one[i].completion.tolist() == other[i].completion.tolist() for i in one
  )
  third = Echo()
  run(tmp_path / 'a', third)
  assert not third.made


def test_what_is_done_before_an_error_is_kept(tmp_path):
  with pytest.raises(errors.InputError, match='NaN'):
    run(tmp_path, Echo(7, errors.InputError('NaN')), at_once=4)
  assert len(collected(tmp_path)) == 7


def test_prompts_elsewhere_in_the_journal_do_not_count(tmp_path):
  run(tmp_path, Echo(), PROMPTS[:5])
  assert run(tmp_path, Echo(), PROMPTS[4:7]) == [
    (1, 3, 0, 5),
    (2, 3, 10, 6),
    (3, 3, 13, 7),
  ]


def test_a_full_disk_stops_and_the_next_run_goes_on(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  class Filling(Echo):
    def __call__(self, requests, on_done):
      super().__call__(requests[:8], on_done)
      monkeypatch.setattr(journal_lib.os, 'write', full)
      super().__call__(requests[8:], on_done)

  with pytest.raises(errors.InputError, match='No space left'):
    run(tmp_path, Filling())
  monkeypatch.undo()
  assert len(collected(tmp_path)) == 8
  run(tmp_path, Echo())
  assert len(collected(tmp_path)) == 21


def test_lengths_are_checked_before_anything_is_generated():
  with pytest.raises(errors.InputError, match="'p3' has 11 tokens.*hold 10"):
    collect.requests_of(PROMPTS, encode, 10)
  with pytest.raises(errors.InputError, match="'none' has no tokens"):
    collect.requests_of([*PROMPTS, prompts.Prompt('none', '')], encode, 99)
  assert len(collect.requests_of(PROMPTS, encode, 11)) == len(PROMPTS)


def test_a_completion_too_few_is_a_bug(tmp_path):
  with pytest.raises(ValueError, match='1 requests'):
    run(tmp_path, lambda requests, done: done('p0', np.zeros(1)), PROMPTS[:2])
  assert collected(tmp_path).keys() == {'p0'}


def test_what_another_process_has_is_not_made_again(tmp_path):
  generate = Echo()
  steps = run(tmp_path, generate, PROMPTS[:6], elsewhere={'p1', 'p4', 'x'})
  assert sorted(generate.made) == ['p0', 'p2', 'p3', 'p5']
  assert steps[0][:2] == (2, 6) and steps[-1][:2] == (6, 6)


def test_given_tokens_stand_in_the_completion(tmp_path):
  asked = [
    collect.Request('whole', 'a' * 16, [1, 2, 3]),
    collect.Request('prefix', 'a' * 16, [1, 2, 3], given=1),
  ]
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    collect.collect(asked, Echo(), journal, lambda *_: None)
  records = collected(tmp_path)
  assert records['whole'].prompt.tolist() == [1, 2, 3]
  assert records['whole'].completion.tolist() == [3, 2, 1]
  assert records['prefix'].prompt.tolist() == [1, 2]
  assert records['prefix'].completion.tolist() == [3, 3, 2, 1]


def test_trajectories_are_extended_some_at_once(tmp_path):
  groups = []

  def extend(records):
    groups.append([record.id for record in records])
    return [dataclasses.replace(r, prompt_hash='b' * 16) for r in records]

  steps = run(tmp_path, Echo(), PROMPTS[:5], extend=extend, at_once=2)
  assert groups == [['p4', 'p3'], ['p2', 'p1'], ['p0']]
  assert [(done, disk) for done, _, _, disk in steps] == [
    (0, 0),
    (2, 2),
    (4, 4),
    (5, 5),
  ]
  assert {r.prompt_hash for r in collected(tmp_path).values()} == {'b' * 16}


def test_what_answers_other_prompts_is_refused(tmp_path):
  run(tmp_path, Echo(), PROMPTS[:8])
  wanted = collect.requests_of(PROMPTS[:8], encode, 99)

  def done(requests):
    there = trajectories.every(str(tmp_path))
    return collect.done(requests, there, 'the folder')

  assert done(wanted) == done([]) == trajectories.lengths(str(tmp_path))
  texts = [prompts.Prompt(f'p{i}', f'other {i}') for i in range(7)]
  for some in (
    collect.requests_of(texts, encode, 99),
    collect.requests_of(PROMPTS[:7], lambda prompt: [*encode(prompt), 7], 99),
    [dataclasses.replace(one, prompt_hash='b' * 16) for one in wanted[:7]],
    [dataclasses.replace(one, given=1) for one in wanted[:7]],
  ):
    names = ', '.join(f"'p{i}'" for i in (6, 5, 4, 3, 2)) + ', ...'
    with pytest.raises(errors.InputError, match=f'folder: .* 7 .*: {names}'):
      done(some)


def test_requests_with_given_tokens_answer_themselves(tmp_path):
  asked = [collect.Request('prefix', 'a' * 16, [1, 2, 3], given=1)]
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    collect.collect(asked, Echo(), journal, lambda *_: None)
  there = list(trajectories.every(str(tmp_path)))
  assert collect.done(asked, there, '') == {'prefix': 4}
  other = [dataclasses.replace(asked[0], prompt=[1, 2, 4])]
  with pytest.raises(errors.InputError, match="'prefix'"):
    collect.done(other, there, '')
