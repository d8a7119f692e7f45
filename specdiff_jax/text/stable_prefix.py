"""Which part of a text no later token changes.

What comes later may complete a character of several bytes, spoil a run of bytes
that were characters so far, or draw a punctuation mark to the word before it.
"""

import codecs
from collections.abc import Sequence

import tokenizers

from specdiff_jax.text import tokenizer_bpe

# What transformers puts right behind decoders that write a space too many.
_TIDY = (
  (' .', '.'),
  (' ?', '?'),
  (' !', '!'),
  (' ,', ','),
  (" ' ", "'"),
  (" n't", "n't"),
  (" 'm", "'m"),
  (" 's", "'s"),
  (" 've", "'ve"),
  (" 're", "'re"),
)
_LONGEST = 4
_BYTES = {text: byte for byte, text in enumerate(tokenizer_bpe.byte_letters())}


def unfinished(tokens: Sequence[str]) -> bool:
  """Returns whether a character of byte-level tokens awaits more bytes.

  `tokens` are the last ones, at least three where there are as many.
  """
  last = b''
  for token in tokens:
    try:
      last += bytes(_BYTES[letter] for letter in token)
    except KeyError:  # an added token: text as it is
      last += token.encode()
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  decoder.decode(last)
  return bool(decoder.getstate()[0])


def fallback_bytes(backend: tokenizers.Tokenizer) -> frozenset[int] | None:
  """Returns the tokens that are single bytes, where runs of them are decoded.

  One byte that does not fit makes every byte of its run U+FFFD, so that the
  text of a run is known at its end. None where there are no such runs.
  """
  decoder = backend.decoder
  if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
    return None
  found = (backend.token_to_id(f'<0x{byte:02X}>') for byte in range(256))
  return frozenset(i for i in found if i is not None)


def tidy(text: str) -> str:
  """Returns the text without the spaces that transformers takes away."""
  for wide, narrow in _TIDY:
    text = text.replace(wide, narrow)
  return text


def untidied(text: str) -> int:
  """Returns how much of a text `tidy` treats alike, whatever follows it.

  What it changes begins with a space. So nothing before it hangs on what
  follows, once the last letters, as many as could begin a change, hold none.
  """
  end = len(text)
  while (space := text.find(' ', max(end - _LONGEST + 1, 0), end)) >= 0:
    end = space
  return end
