"""The decode trace: each token's cycle, and its depth in the draft."""

import dataclasses

import jax
import numpy as np
import pytest

import specdiff_jax as sd
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.testing import models
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.tools.bench import trace as trace_lib

PROMPTS = [[5, 6, 7], [9, 8, 9, 8, 9], [3, 4], [11, 2, 11, 2], [1, 2, 3, 1, 2]]
REQUESTS = [request_lib.Request(i, ids) for i, ids in enumerate(PROMPTS)]
SYSTEMS = {
  'ar': {},
  'early_exit': {'gamma': 3},
  'tree': {
    'gamma': 3, 'drafts': 2, 'budget': 6, 'drafter': 'random',
    'network': {'layers': 1},
  },
}  # fmt: skip


def system(name: str):
  return sd.system(
    name, models.tiny_verifier(), batch=2, prompt_buckets=(8,), chat=False,
    max_new_tokens=17, **SYSTEMS[name],
  )  # fmt: skip


def decode(name: str, requests) -> list[request_lib.Completion]:
  return system(name).session.keeping(trace=True).decode(requests)


def accepted(trace: np.ndarray, size: int) -> list[int]:
  """Returns the histogram of accepted tokens that a trace tells.

  Of all cycles but the last, which the limit may have cut.
  """
  found = [0] * size
  for cycle in range(1, trace[-1, 0]):
    depths = trace[trace[:, 0] == cycle, 1].tolist()
    assert depths == [*range(1, len(depths)), 0]
    found[len(depths) - 1] += 1
  return found


def agrees(made: request_lib.Completion) -> bool:
  """Returns whether trace and histogram of a completion are of one text."""
  try:
    left = made.accepted - accepted(made.trace, len(made.accepted))
  except AssertionError:
    return False
  return left.min() >= 0 and left.sum() == 1


@pytest.mark.parametrize('name', SYSTEMS)
def test_it_is_what_was_accepted(name):
  """In rows that are refilled too: as if each were alone."""
  completions = decode(name, REQUESTS)
  for request, made in zip(REQUESTS, completions):
    assert made.trace.shape == (17, 2) and len(made.tokens) == 17
    assert made.trace[0].tolist() == [0, 0]  # of prefill
    assert made.trace[-1, 0] == made.cycles and agrees(made)
    [alone] = decode(name, [request])
    np.testing.assert_array_equal(made.trace, alone.trace)
  deepest = max(made.trace[:, 1].max() for made in completions)
  assert deepest == 0 if name == 'ar' else deepest >= 1


def test_another_order_of_depths_is_noticed():
  """Negative control."""
  [made] = decode('early_exit', REQUESTS[:1])
  assert made.trace[:, 1].max() >= 2
  trace = made.trace.copy()
  np.random.default_rng(0).shuffle(trace[:, 1])
  assert not agrees(dataclasses.replace(made, trace=trace))


def test_it_is_returned_where_it_is_asked_for():
  one = system('ar')
  made, plain = (one.generate(PROMPTS[0], trace=on) for on in (True, False))
  assert plain.trace is None and made.tokens == plain.tokens
  assert len(made.trace) == len(made.tokens) and made.trace[0] == (0, 0)


def test_it_costs_nothing_where_it_is_off():
  """No buffer of its shape, [B, T, 2], is in the programs then."""
  session = system('early_exit').session
  for on in (True, False):
    texts = lowered(session.keeping(trace=on))
    assert [f'<2x{8 + 17}x2xi32>' in text for text in texts] == [on, on]


def lowered(session) -> list[str]:
  """Returns the programs of prefill and decode, not compiled."""
  engine, params = session.engine, (session.params, session.drafter_params)
  given = session.inputs(REQUESTS[:1])
  state = jax.eval_shape(engine.prefill, *params, *given)
  programs = (
    engine.prefill.lower(engine, *params, *given),
    engine.decode.lower(engine, *params, state, np.int32(3), np.int32(2)),
  )
  return [program.as_text() for program in programs]


def of_text(text: str, ids=None, **more):
  """Returns the pieces of a text, a token a byte, of a made up trace."""
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  session = dataclasses.replace(
    system('ar').session, decode_text=tokenizer.decode,
    settled_text=tokenizer.settled, **more,
  )  # fmt: skip
  tokens = np.array(ids or tokenizer.encode(text), np.int32)
  number = np.arange(len(tokens))
  made = request_lib.Completion(
    0, tokens, 1, 1, np.zeros(1), trace=np.stack([number, number % 3], -1)
  )
  assert session.cut(made)[0] == text
  return trace_lib.pieces(session, made)


def test_pieces_are_the_text():
  text = 'né\n€ 😀.'
  found = of_text(text)
  assert [piece.text for piece in found] == [*text]
  # A character of several tokens is of the last of them.
  assert [piece.cycle for piece in found] == [0, 2, 3, 6, 7, 11, 12]
  assert [piece.depth for piece in found] == [0, 2, 0, 0, 1, 2, 0]


def test_pieces_end_before_a_stop_string():
  ids = tokenizer_lib.Tokenizer.bytes(260).encode('one\n\ntwo')
  found = of_text('one', ids, stop=('\n\n',))
  assert [piece.text for piece in found] == ['o', 'n', 'e', '']
  assert found[-1].cycle == 4


def test_what_does_not_settle_and_end_tokens_stay():
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  ids = [*tokenizer.encode('ab'), *tokenizer.encode('€')[:2]]
  assert [piece.text for piece in of_text('ab\ufffd', ids)] == [
    'a', 'b', '\ufffd',
  ]  # fmt: skip
  ids = [*tokenizer.encode('ab'), tokenizer.end_ids[0]]
  assert [piece.text for piece in of_text('ab', ids)] == ['a', 'b', '']
