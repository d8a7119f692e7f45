"""The decode trace: a completion's text by what proposed each piece of it."""

from typing import Any, NamedTuple

from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.text import stop_strings


class Piece(NamedTuple):
  """A token's text, with that of tokens before it that only now settled."""

  text: str  # empty at most in the last one, of an end token
  cycle: int  # the call of the verifier that yielded it; 0: prefill
  depth: int  # in that call's draft; 0: the verifier's own token


class Trace(NamedTuple):
  """One prompt as one system decoded it."""

  id: str
  system: str
  pieces: list[Piece]

  def to_json(self) -> dict[str, Any]:
    """Returns an element of a result's `example`."""
    told = [piece._asdict() for piece in self.pieces]
    return {'id': self.id, 'system': self.system, 'trace': told}


def of(system: session_lib.Session, request: request_lib.Request) -> Trace:
  """Decodes a request with a program that keeps the trace, compiled anew."""
  system = system.keeping(trace=True)
  [made] = system.decode([request], on_tokens=system.watch())
  return Trace(str(request.name), system.name, pieces(system, made))


def pieces(
  system: session_lib.Session, made: request_lib.Completion
) -> list[Piece]:
  """Returns the pieces, whose texts joined are the completion's text.

  `made` is of a session that keeps the trace. A character that several tokens
  make is one piece, of the last of them.
  """
  assert made.trace is not None
  _, tokens = system.cut(made)
  text = stop_strings.Stream(
    system.decode_text, system.stop, system.settled_text
  )
  found = []
  for end in range(1, len(tokens) + 1):
    piece, last = text.show(tokens[:end]), end == len(tokens)
    if last:
      piece += text.finish()
    if piece or last:
      found.append(Piece(piece, *made.trace[end - 1].tolist()))
  return found
