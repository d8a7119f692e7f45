"""Published drafters: networks, names and configs against references."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import published_models
import published_references
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import errors
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.masked_lm import model as masked_lm
from specdiff_jax.models import networks

IDS = np.random.default_rng(7).integers(0, 256, 19)
IDS[11:] = published_models.MASK
BAR = 1e-4  # of the range of the logits


def load(folder, family=''):
  """Returns what a directory describes, and its params."""
  published = published_lib.read(str(folder), family)
  tensors = published_lib.tensors(str(folder), published)
  params, _ = params_lib.gather(published.sizes, tensors, 'float32', 'test')
  return published, params


def ours(published, params, causal=False):
  """Returns logits [T, V] of a masked language model."""
  size = len(IDS)
  mask = np.ones((1, size, size), bool)
  mask = np.tril(mask) if causal else mask

  @jax.jit
  def whole(params, mask):
    model, at = networks.network(published.sizes), jnp.arange(size)[None]
    x, _, _ = model.apply({'params': params}, jnp.asarray(IDS[None]), at, mask)
    return model.apply({'params': params}, x[0], method='logits')

  return np.asarray(whole(params, mask))


def difference(got, wanted):
  """Returns the largest difference, relative to the range."""
  assert np.ptp(wanted) > 1
  return np.abs(got - wanted).max() / np.ptp(wanted)


@pytest.mark.parametrize('family', ['llada', 'mdlm'])
def test_logits_are_those_of_the_reference(tmp_path, family):
  raw, tensors = published_models.make(family)
  published_models.write(tmp_path, raw, tensors)
  published, params = load(tmp_path)
  wanted = getattr(published_references, family)(raw, tensors, IDS)
  assert difference(ours(published, params), wanted) <= BAR
  # Negative controls: a causal mask, and two tensors of the same shape swapped.
  assert difference(ours(published, params, causal=True), wanted) > BAR
  first, second = {
    'llada': ('gate', 'up'),
    'mdlm': ('attention_norm', 'mlp_norm'),
  }[family]
  layer = params['layer_0']
  layer[first], layer[second] = layer[second], layer[first]
  assert difference(ours(published, params), wanted) > BAR


def theirs(name, raw, tensors):
  """Returns logits of `transformers` under a mask that hides nothing."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  skipped = ('architectures', 'model_type', 'attention_bias', 'mask_token_id')
  raw = {k: v for k, v in raw.items() if k not in skipped}
  config = getattr(transformers, f'{name}Config')(
    **raw, attn_implementation='eager'
  )
  kind = 'GPT2LMHeadModel' if name == 'GPT2' else f'{name}ForCausalLM'
  model = getattr(transformers, kind)(config).eval()
  state = {k: torch.tensor(v) for k, v in tensors.items()}
  left = model.load_state_dict(state, strict=False)
  assert not left.unexpected_keys
  assert set(left.missing_keys) <= {'lm_head.weight'}  # a tied one
  size = len(IDS)
  with torch.no_grad():
    return (
      model(
        torch.tensor(IDS[None]), attention_mask=torch.zeros(1, 1, size, size)
      )
      .logits[0]
      .numpy()
    )


@pytest.mark.parametrize(
  'family, name',
  [
    ('dream', 'Qwen2'),
    ('a2d_qwen3', 'Qwen3'),
    ('diffullama', 'Llama'),
    ('diffugpt', 'GPT2'),
  ],
)
def test_logits_are_those_of_transformers(tmp_path, family, name):
  raw, tensors = published_models.make(family)
  published_models.write(tmp_path, raw, tensors)
  preset = family if family.startswith('diffu') else ''
  published, params = load(tmp_path, preset)
  usual = {
    k.replace('denoise_model', 'transformer').replace(
      'embed_tokens', 'transformer.wte'
    )
    if family == 'diffugpt'
    else k: v
    for k, v in tensors.items()
  }
  wanted = theirs(name, raw, usual)
  assert difference(ours(published, params), wanted) <= BAR
  assert difference(ours(published, params, causal=True), wanted) > BAR


@pytest.mark.parametrize(
  'family, mask, shifted',
  [
    ('dream', published_models.MASK, True),
    ('diffullama', published_models.MASK, True),
    ('diffugpt', published_models.MASK, True),
    ('llada', published_models.MASK, False),
    ('a2d_qwen3', published_lib.NO_MASK, False),
    ('mdlm', published_models.VOCAB, False),
  ],
)
def test_mask_and_alignment(tmp_path, family, mask, shifted):
  raw, tensors = published_models.make(family)
  published_models.write(tmp_path, raw, tensors)
  preset = family if family.startswith('diffu') else ''
  published = published_lib.read(str(tmp_path), preset)
  assert (published.mask_id, published.shifted) == (mask, shifted)


@pytest.mark.parametrize(
  'family, size, mask',
  [
    ('diffugpt', 50257, 10541),  # the small one took a word for it
    ('diffugpt', 50258, 50257),
    ('diffullama', 32000, 811),
  ],
)
def test_masks_that_no_file_tells(tmp_path, family, size, mask):
  raw, _ = published_models.make(family)
  del raw['mask_token_id']
  (tmp_path / 'config.json').write_text(json.dumps(raw | {'vocab_size': size}))
  assert published_lib.read(str(tmp_path), family).mask_id == mask


def block(published, params, noise, hidden):
  """Returns the final states of a block, in a cache with room behind."""
  size, room = len(hidden), len(hidden) + 3
  layers = len(published.sizes.features)
  features = hidden.reshape(1, size, layers, -1).astype(np.float32)

  @jax.jit
  def whole(params, features, noise):
    model = dflash.DFlash(published.sizes)
    at = jnp.arange(size)[None]
    keys = model.apply({'params': params}, features, at, method='context')
    pad = ((0, 0), (0, 0), (0, room - size), (0, 0))
    keys = jax.tree.map(lambda x: jnp.pad(x, pad, constant_values=9), keys)
    anchors = jnp.array([[size]])
    return model.apply(
      {'params': params}, noise[None, None], anchors, keys, serving=True
    )

  return np.asarray(whole(params, features, noise.astype(np.float32)))[0, 0]


@pytest.mark.slow
def test_a_dflash_block_is_that_of_the_reference(tmp_path):
  raw, tensors = published_models.make('dflash')
  published_models.write(tmp_path, raw, tensors, tokenizer=False)
  published, params = load(tmp_path)
  assert published.sizes.features == (1, 0) and published.sizes.gamma == 4
  rng = np.random.default_rng(3)
  noise = rng.standard_normal((5, published_models.WIDTH))
  hidden = rng.standard_normal((9, 2 * published_models.WIDTH))
  wanted = published_references.dflash(raw, tensors, noise, hidden)
  assert difference(block(published, params, noise, hidden), wanted) <= BAR
  # Negative controls: layers in another order; a norm that is left out.
  other = np.roll(hidden, published_models.WIDTH, axis=1)
  assert difference(block(published, params, noise, other), wanted) > BAR
  params['layer_0']['key_norm'] = np.ones(published_models.HEAD_DIM, np.float32)
  assert difference(block(published, params, noise, hidden), wanted) > BAR


def changed(family, **fields):
  raw, _ = published_models.make(family)
  return {k: v for k, v in (raw | fields).items() if v is not None}


@pytest.mark.parametrize(
  'raw, words',
  [
    (
      changed('dream', architectures=['LLaDAMoEModelLM']),
      ('LLaDAMoEModelLM', 'known: DreamModel'),
    ),
    (
      changed('dream', architectures=['DreamForCausalLM']),
      ('DreamForCausalLM',),
    ),  # another model with the same model_type
    (changed('diffullama'), ('LlamaForCausalLM', 'autoregressive', 'family')),
    (changed('dream', mask_token_id=None), ('mask_token_id', 'None')),
    (changed('dream', quantization_config={}), ('quantization_config',)),
    (changed('llada', alibi=True), ('alibi', 'True')),
    (changed('llada', d_model=None), ('d_model',)),
    *(
      (changed('llada', **{key: None}), (f'{key} is not there', str(value)))
      for key, value in {
        'block_type': 'llama',
        'activation_type': 'silu',
        'rope': True,
        'layer_norm_type': 'rms',
        'include_bias': False,
        'weight_tying': False,
      }.items()
    ),
    (changed('llada', mask_token_id=None), ('mask_token_id is None',)),
    (changed('llada', rope=False), ('rope is False; only True',)),
    (changed('mdlm', time_conditioning=True), ('time_conditioning',)),
    (changed('mdlm', n_heads=7), ('width=24', '7')),
    (changed('dflash', dflash_config=None), ('target_layer_ids', 'None')),
    (changed('dflash', block_size=1), ('block of 1',)),
    (changed('dflash', is_causal=True), ('is_causal',)),
    (
      changed('dflash', layer_types=['sliding_attention'] * 2),
      ('layer_types',),
    ),
    (changed('dflash', final_logit_softcapping=20.0), ('softcapping',)),
    (changed('dflash', causal=True), ('causal is True',)),
    (changed('dflash', use_swa=True), ('use_swa is True',)),
    (changed('dflash', swa_window_size=9), ('swa_window_size is 9',)),
    (
      changed('dflash', use_sliding_window=True, sliding_window=9),
      ('use_sliding_window is True',),
    ),
    (changed('dflash', draft_vocab_size=100), ('draft_vocab_size is 100',)),
    (changed('dflash', num_hidden_layers=10**9), ('num_hidden_layers',)),
    (changed('dflash', block_size=10**6), ('block of 1000000',)),
    (
      changed(
        'dflash',
        block_size=7,
        dflash_config={
          'target_layer_ids': [0],
          'mask_token_id': 1,
          'block_size': 5,
        },
      ),
      ('block_size is 7', 'dflash_config.block_size is 5'),
    ),
    *(
      (changed('eagle3', **{key: value}), (f'{key} is {value}',))
      for key, value in {
        'num_hidden_layers': 2,
        'attention_bias': True,
        'mlp_bias': True,
        'target_hidden_size': 48,
        'norm_before_residual': True,
      }.items()
    ),
    (changed('eagle3', draft_vocab_size=265), ('265', 'draft_vocab_size')),
    (
      changed('eagle3', eagle_config={'use_mtp_layernorm': True}),
      ('eagle_config.use_mtp_layernorm is True',),
    ),
    (
      changed('eagle3', eagle_config={'use_aux_hidden_state': False}),
      ('use_aux_hidden_state is False',),
    ),
    *(
      (changed('eagle3', **keys), ('layer_ids', f'from {first} on'))
      for first, keys in enumerate(
        (
          {'eagle_config': {'eagle_aux_hidden_state_layer_ids': [-1]}},
          {'eagle_config': None, 'eagle_aux_hidden_state_layer_ids': [0]},
        )
      )
    ),
    (changed('dream', num_hidden_layers=10**9), ('num_hidden_layers',)),
    (changed('mdlm', n_blocks=10**9), ('n_blocks',)),
    (changed('llada', n_layers=10**9), ('num_hidden_layers',)),
    (changed('llada', weight_tying='no'), ('weight_tying',)),
    (
      changed(
        'dflash', dflash_config={'target_layer_ids': [0], 'mask_token_id': 999}
      ),
      ('999', '263'),
    ),
  ],
)
def test_configs_that_are_refused(tmp_path, raw, words):
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(raw))
  with pytest.raises(errors.InputError) as error:
    published_lib.read(str(tmp_path))
  for word in words:
    assert word in str(error.value), word


@pytest.mark.parametrize(
  'keys, word',
  [
    ({'use_swa': True, 'swa_window_size': 2048}, 'use_swa|swa_window_size'),
    ({'use_swa': False, 'swa_window_size': 2048}, ''),
    ({'swa_window_size': 2048}, 'swa_window_size is 2048'),
    ({'sliding_window': 64}, 'sliding_window is 64'),
    ({'causal': True}, 'causal is True'),
    ({'causal': False, 'is_causal': False, 'num_anchors': 512}, ''),
    ({'use_causal_mask': True}, 'use_causal_mask'),
    ({'projector_type': 'dspark'}, "projector_type is 'dspark'"),
    ({'projector_type': 'dflash'}, ''),
    ({'markov_rank': 4, 'markov_head_type': 'rnn'}, "type is 'rnn'"),
    ({'linear_context': {'variant': 'gdn'}}, 'dflash_config.linear_context'),
    ({'use_aux_hidden_state': False}, 'use_aux_hidden_state is False'),
  ],
)
def test_keys_of_dflash_config(tmp_path, keys, word):
  """As others write them; what may change the network is refused by name."""
  raw, _ = published_models.make('dflash')
  plain = raw['dflash_config']
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(raw | {'dflash_config': plain | keys}))
  if word:
    with pytest.raises(errors.InputError, match=word):
      published_lib.read(str(tmp_path))
    return
  found = published_lib.read(str(tmp_path)).sizes
  file.write_text(json.dumps(raw))
  assert found == published_lib.read(str(tmp_path)).sizes


def test_a_dflash_drafter_with_what_a_sparse_verifier_left(tmp_path):
  raw, _ = published_models.make('dflash')
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(raw))
  plain = published_lib.read(str(tmp_path)).sizes
  file.write_text(json.dumps(raw | {
      'num_experts': 128, 'num_experts_per_tok': 8, 'mlp_only_layers': [1],
      'moe_intermediate_size': 768, 'norm_topk_prob': True,
  }))  # fmt: skip
  assert published_lib.read(str(tmp_path)).sizes == plain
  raw, _ = published_models.make('dream')  # whose layers could be sparse
  file.write_text(json.dumps(raw | {'num_experts': 128}))
  with pytest.raises(errors.InputError, match='num_experts is 128'):
    published_lib.read(str(tmp_path))


def test_a_drafter_tied_in_name_alone_keeps_its_head(tmp_path):
  raw, tensors = published_models.make('dream')
  raw['tie_word_embeddings'] = True
  published_models.write(tmp_path, raw, tensors)
  assert not published_lib.read(str(tmp_path)).sizes.tied_head
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  published_models.write(tmp_path, raw, tensors)
  assert published_lib.read(str(tmp_path)).sizes.tied_head


@pytest.mark.parametrize('family', ['llada', 'mdlm', 'dflash'])
def test_tensors_that_do_not_fit(tmp_path, family):
  raw, tensors = published_models.make(family)
  name = next(n for n in tensors if n.endswith('norm.weight') or 'norm1' in n)

  def refused(changed, *words):
    published_models.write(tmp_path, raw, changed)
    with pytest.raises(errors.InputError) as error:
      load(tmp_path)
    for word in words:
      assert word in str(error.value), word

  refused({k: v for k, v in tensors.items() if k != name}, 'missing', 'norm')
  refused(tensors | {'extra.weight': tensors[name]}, "'extra.weight'", 'place')
  refused(tensors | {name: tensors[name][1:]}, repr(name), '(23,)')


def test_a_mask_outside_the_vocabulary_is_refused(tmp_path):
  published_models.write(tmp_path, *published_models.make('llada'))
  sizes = published_lib.read(str(tmp_path)).sizes
  with pytest.raises(errors.InputError, match='id 264, .* ids 0 to 263'):
    masked_lm.MaskedLM(sizes, 264, False)
  with pytest.raises(errors.InputError, match='causal'):
    masked_lm.MaskedLM(sizes, 1, False, 'none')
