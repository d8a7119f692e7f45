"""Stop strings and growing text."""

import pytest

from specdiff_jax.text import stop_strings


def decode(tokens):
  """A token is a byte."""
  return bytes(int(t) for t in tokens).decode('utf-8', 'replace')


def settled(tokens):
  return decode(tokens).rstrip('\ufffd')


def encode(string):
  return list(string.encode())


@pytest.mark.parametrize(
  'string, stop, wanted, tokens',
  [
    ('hello', (), 'hello', 5),
    ('hello', ('x',), 'hello', 5),
    ('hello', ('l',), 'he', 3),
    ('hello', ('lo', 'll'), 'he', 4),
    ('hello', ('h',), '', 1),
    ('one\n\ntwo\n\n', ('\n\n',), 'one', 5),
  ],
)
def test_cut(string, stop, wanted, tokens):
  result, kept = stop_strings.cut(decode, encode(string), stop, settled)
  assert result == wanted
  assert kept == encode(string)[:tokens]


@pytest.mark.parametrize('step', [1, 2, 3, 100])
@pytest.mark.parametrize(
  'string, stop',
  [('añb→c', ()), ('one STOP two', ('STOP',)), ('ST STO end', ('STOP',))],
)
def test_stream_gives_what_cut_gives(string, stop, step):
  stream = stop_strings.Stream(decode, stop, settled)
  pieces, ids = [], encode(string)
  for end in range(step, len(ids) + step, step):
    pieces.append(stream.show(ids[:end]))
    assert '\ufffd' not in pieces[-1]
  pieces.append(stream.finish())
  assert ''.join(pieces) == stop_strings.cut(decode, ids, stop, settled)[0]
  assert stream.stopped == ('STOP' in string)


def test_stream_holds_back_what_may_become_a_stop():
  stream = stop_strings.Stream(decode, ('STOP',), settled)
  assert stream.show(encode('aST')) == 'a'
  assert stream.show(encode('aSTy')) == 'STy'


def test_watch():
  assert stop_strings.watch((), settled) is None
  look = stop_strings.watch(('b',), settled)
  assert not look(0, encode('a'))
  assert look(0, encode('ab'))
