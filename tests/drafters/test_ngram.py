"""The token-level n-gram: against a plain reference, and its files."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.core import errors
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters.ngram import edges
from specdiff_jax.drafters.ngram import file
from specdiff_jax.drafters.ngram import kneser_ney
from specdiff_jax.drafters.ngram import model
from specdiff_jax.text import tokenizer as tokenizer_lib

VOCAB = 11
_RNG = np.random.default_rng(0)
TEXTS = [
  (_RNG.zipf(1.5, size) % VOCAB).tolist() for size in (1, 2, 3, 40, 25, 60, 9)
]
TEXTS[3][:3] = [10, 10, 10]


class Reference:
  """Interpolated Kneser-Ney by its definition, over tuples."""

  def __init__(self, texts, order, vocab):
    self.order, self.vocab = order, vocab
    self.count = {n: collections.Counter() for n in range(1, order + 1)}
    grams = collections.Counter()
    for text in texts:
      padded = ['<s>'] * (order - 1) + list(text)
      for i in range(order - 1, len(padded)):
        grams[tuple(padded[i - order + 1 : i + 1])] += 1
    self.count[order] = grams
    for n in range(order - 1, 0, -1):
      # N1+(. u w): how many different tokens stand before.
      for longer in self.count[n + 1]:
        self.count[n][longer[1:]] += 1
    self.discount = {}
    for n, counts in self.count.items():
      n1 = sum(c == 1 for c in counts.values())
      n2 = sum(c == 2 for c in counts.values())
      self.discount[n] = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5

  def p(self, w, u):
    n, d = len(u) + 1, self.discount[len(u) + 1]
    lower = self.p(w, u[1:]) if u else 1 / self.vocab
    follow = {g[-1]: c for g, c in self.count[n].items() if g[:-1] == u}
    total = sum(follow.values())
    if not total:
      return lower
    share = max(follow.get(w, 0) - d, 0) / total
    return share + d * len(follow) / total * lower


def ask(tables, contexts, candidates):
  return np.asarray(
    jax.jit(model.log_probabilities)(tables, contexts, candidates)
  )


def contexts_of(order):
  """Returns all contexts, the beginnings of texts among them."""
  tokens = range(-1, VOCAB)
  grid = list(itertools.product(tokens, repeat=order - 1))
  return np.array(grid, np.int32).reshape(len(grid), order - 1)


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_it_is_the_reference_and_sums_to_one(order):
  tables = model.tables(kneser_ney.fit(TEXTS, VOCAB, order))
  assert tables.order == order
  contexts = contexts_of(order)
  every = np.broadcast_to(np.arange(VOCAB), (len(contexts), VOCAB))
  got = ask(tables, contexts, every)
  np.testing.assert_allclose(np.exp(got).sum(1), 1, atol=2e-6)
  plain = Reference(TEXTS, order, VOCAB)
  wanted = [
    [
      math.log(plain.p(w, tuple('<s>' if t < 0 else int(t) for t in u)))
      for w in range(VOCAB)
    ]
    for u in contexts
  ]
  np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_another_discount_is_noticed():
  """Negative control of the comparison above."""
  plain = Reference(TEXTS, 3, VOCAB)
  plain.discount[2] += 0.05
  tables = model.tables(kneser_ney.fit(TEXTS, VOCAB, 3))
  context, seen = next(
    (g[:-1], g[-1]) for g in plain.count[3] if '<s>' not in g
  )
  got = ask(tables, np.array(context)[None], np.array([[seen]]))
  assert abs(got[0, 0] - math.log(plain.p(seen, context))) > 1e-4


def test_counts_that_are_not_continuations_are_noticed():
  """Negative control: below the highest order no occurrences are counted."""
  frequent = [[1, 2] * 20, [3, 4], [5, 4], [6, 4]]
  plain = Reference(frequent, 2, VOCAB)
  # 2 is far more frequent, but 4 has more different tokens before it.
  got = ask(
    model.tables(kneser_ney.fit(frequent, VOCAB, 2)),
    np.array([[9]]),
    np.array([[2, 4]]),
  )[0]
  assert got[1] > got[0] and plain.p(4, ()) > plain.p(2, ())


def test_large_ids_in_many_entries():
  """Every n-gram of a long text is found, and no other one."""
  rng = np.random.default_rng(1)
  size = 200_000
  text = rng.integers(0, size, 20_000).tolist()
  levels = kneser_ney.fit([text], size, 3)
  tables = model.tables(levels)
  here = np.array([text[i : i + 3] for i in range(2000)])
  plain = Reference([text], 3, size)
  # A seen trigram (c = 1 and the only one of its context) leaves D to the rest.
  d = plain.discount[3]
  lower = ask(
    tables.replace(longer=tables.longer[:1]), here[:, 1:2], here[:, 2:]
  )
  wanted = np.log(1 - d + d * np.exp(lower))
  got = ask(tables, here[:, :2], here[:, 2:])
  np.testing.assert_allclose(got, wanted, atol=1e-5)
  unseen = ask(tables, here[:, :2], (here[:, 2:] + 1) % size)
  assert (unseen < got - 1).all()


def test_batches_of_any_shape():
  tables = model.tables(kneser_ney.fit(TEXTS, VOCAB, 3))
  previous = jnp.array(contexts_of(3)[:24].reshape(2, 3, 4, 2))
  candidates = jnp.arange(120).reshape(2, 3, 4, 5) % VOCAB
  whole = ask(tables, previous, candidates)
  assert whole.shape == (2, 3, 4, 5)
  one = ask(tables, previous[1, 2, 3], candidates[1, 2, 3])
  np.testing.assert_array_equal(whole[1, 2, 3], one)


BYTES = tokenizer_lib.Tokenizer.bytes(260)


@pytest.mark.parametrize('empty', [1, 2])
def test_an_order_without_n_grams_changes_nothing(empty):
  """As a file has one whose only pairs end texts."""
  *levels, last = kneser_ney.fit(TEXTS, VOCAB, 3)[:empty]
  levels.append(last._replace(backoff=np.zeros_like(last.backoff)))
  none = model.Level(*(x[:0] for x in levels[-1]))
  every = np.broadcast_to(np.arange(VOCAB), (len(contexts_of(3)), VOCAB))
  more = [*levels, *[none] * (3 - empty)]
  got = ask(model.tables(more), contexts_of(3), every)
  short = contexts_of(3)[:, 3 - empty :]
  np.testing.assert_array_equal(got, ask(model.tables(levels), short, every))


def levels_of(texts, order=3):
  return kneser_ney.fit([BYTES.encode(t) for t in texts], 260, order)


def same(one, other):
  assert len(one) == len(other)
  for mine, theirs in zip(one, other):
    for a, b in zip(mine, theirs):
      np.testing.assert_array_equal(a, b)


def test_a_file_gives_the_model_back(tmp_path):
  path = str(tmp_path / 'n.safetensors')
  levels = levels_of(['a b a', 'b b'])
  file.save(path, levels, BYTES, {'texts': 2})
  same(file.load(path, BYTES, 260), levels)


def test_a_model_of_another_tokenizer_is_refused(tmp_path):
  path = str(tmp_path / 'n.safetensors')
  file.save(path, levels_of(['a b']), BYTES, {})
  for tokenizer, size in (
    (tokenizer_lib.Tokenizer.bytes(261), 260),
    (BYTES, 261),
  ):
    with pytest.raises(errors.InputError, match='tokens of another tokenizer'):
      file.load(path, tokenizer, size)


@pytest.mark.parametrize(
  'level, part, value, said',
  [
    (1, 'log_p', math.nan, '2.log_p holds no log'),
    (1, 'parent', 261, '2.parent points outside'),
    (2, 'parent', -1, '3.parent points outside'),
    (1, 'token', 97, '2 has an n-gram twice'),
    (0, 'token', 5, '1.token is not all ids'),
  ],
)
def test_a_damaged_file_is_refused(tmp_path, level, part, value, said):
  path = str(tmp_path / 'n.safetensors')
  levels = levels_of(['aabab' * 3])
  wrong = getattr(levels[level], part).copy()
  wrong[:2] = value
  if said.endswith('twice'):
    levels[level].parent[:2] = 97
  levels[level] = levels[level]._replace(**{part: wrong})
  file.save(path, levels, BYTES, {})
  with pytest.raises(errors.InputError, match=said):
    file.load(path, BYTES, 260)


def test_a_table_within_a_level_is_refused(tmp_path):
  path = str(tmp_path / 'n.safetensors')
  file.save(path, levels_of(['aabab' * 3]), BYTES, {})
  tensors, metadata = safetensors_io.load(path)
  tensors['3']['token'] = {'x': tensors['3']['token']}
  safetensors_io.save(path, tensors, metadata)
  with pytest.raises(errors.InputError, match='level 3 lacks'):
    file.load(path, BYTES, 260)


def test_pairs_made_to_collide_are_refused():
  """Not a table without end."""
  token = np.arange(300_000, dtype=np.int32)
  zeros = np.zeros_like(token)
  place = np.asarray(model._hash(zeros, token, np)) >> 4
  crowd = np.isin(place, place[:1])
  many = np.concatenate([np.flatnonzero(crowd)[:1]] * 9).astype(np.int32)
  level = model.Level(many * 0, many, np.zeros(9, 'f'), np.zeros(9, 'f'))
  with pytest.raises(errors.InputError, match='cannot be told apart'):
    model.tables([level, level])


ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-1.0\ta\t-0.25
-0.5\tb\t0
-2\t</s>
-3.0\t<unk>

\\2-grams:
-0.125\t<s> a\t-0.1
-0.75\ta b
-0.2\tb </s>

\\3-grams:
-0.0625\t<s> a b

\\end\\
"""


EMPTY = '\\data\\\nngram 1=0\n\\1-grams:\n\\end\\\n'


def arpa(tmp_path, text):
  path = tmp_path / 'n.arpa'
  path.write_text(text)
  return file.load(str(path), BYTES, 260)


def test_an_arpa_file_is_read(tmp_path):
  tables = model.tables(arpa(tmp_path, ARPA))
  a, b, c = BYTES.encode('abc')
  for previous, candidate, log10 in (
    ([-1, a], b, -0.0625),
    ([-1, a], a, -0.1 - 0.25 - 1.0),  # <s> a backs off, then a
    ([c, a], b, -0.75),  # c a is not there
    ([c, c], a, -1.0),
    ([b, -1], a, -0.125),
    ([-1, -1], b, -0.5 - 0.5),
    ([a, b], c, -3.0),  # <unk>
  ):
    got = ask(tables, np.array([previous]), np.array([[candidate]]))
    np.testing.assert_allclose(got, log10 * math.log(10), rtol=1e-5)


@pytest.mark.parametrize(
  'old, new, said',
  [
    ('\\data\\', 'data', 'line 23: .*without the line .data'),
    ('ngram 2=3', 'ngram 3=3', 'line 4: .*orders have to come as 1, 2'),
    ('-1.0\ta\t-0.25', '-x\ta\t-0.25', 'line 9: .*numbers cannot be read'),
    ('-1.0\ta\t-0.25', '1.0\ta\t-0.25', 'line 9: .*no logarithms of prob'),
    ('-1.0\ta\t-0.25', '-1.0\tword\t-0.25', "line 9: .*'word', .*no token"),
    ('-1.0\ta\t-0.25', '-1.0\tb\t-0.25', 'line 10: .*repeats an n-gram'),
    ('-0.75\ta b', '-0.75\ta', 'line 16: .*with 2 fields, of which 2'),
    ('<s> a b', 'b a b', 'line 20: .*context is not among the shorter'),
    ('ngram 1=5', 'ngram 1=6', 'line 14: .*after 5 1-grams'),
    ('\\3-grams:', '\\4-grams:', 'line 19: .*3-grams: should stand'),
    ('\\end\\', '', 'line 23: .*end.* should stand'),
    (ARPA, EMPTY, 'line 4: .*without the probability of any token'),
  ],
)
def test_a_malformed_arpa_file_names_the_line(tmp_path, old, new, said):
  assert old in ARPA
  with pytest.raises(errors.InputError, match=said):
    arpa(tmp_path, ARPA.replace(old, new))


def test_edges_of_a_lattice_are_those_of_pairs():
  """s(c) + weight (log p(c | x) - log p(c)), over the candidates."""
  rng = np.random.default_rng(0)
  tables = model.tables(kneser_ney.fit(TEXTS, VOCAB, 2))
  ids = rng.permutation(VOCAB)[:8]
  m = marginals.Marginals(
    logits=jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32),
    ids=jnp.asarray(ids),
    root=jnp.array([4, 1]),
    length=jnp.array([5, 5]),
    vocab_size=VOCAB,
  )
  index = np.asarray(rng.permuted(np.tile(np.arange(8), (2, 3, 1)), axis=-1))
  index, scale = index[..., :4], np.array([1.0, 0.5], np.float32)
  start, trans = jax.jit(edges.Edges())(tables, m, m.logits, index, scale)
  plain = Reference(TEXTS, 2, VOCAB)
  for b, slot, k in itertools.product(range(2), range(3), range(4)):
    x = ids[index[b, slot - 1, k]] if slot else m.root[b]
    token = ids[index[b, slot]]
    pairs = [plain.p(int(c), (int(x),)) / plain.p(int(c), ()) for c in token]
    score = np.asarray(m.logits)[b, slot, index[b, slot]]
    wanted = scipy.special.log_softmax(score + scale[b] * np.log(pairs))
    got = trans[b, slot - 1, k] if slot else start[b]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
  assert np.ptp(np.asarray(trans), axis=2).max() > 0.1  # the parent matters
