"""Published drafters in numpy, from their papers and modelling files.

Each takes config.json and the tensors under the names of the file.
"""

import numpy as np


def rms_norm(x, weight, eps):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * weight


def layer_norm(x, weight):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * weight


def silu(x):
  return x / (1 + np.exp(-x))


def gelu_tanh(x):
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  return 0.5 * x * (1 + np.tanh(inner))


def rotated(x, positions, base):
  """Turns halves of x [T, H, Dh], as rotate_half does."""
  half = x.shape[-1] // 2
  angles = positions[:, None] / base ** (np.arange(half) / half)
  cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
  first, second = x[..., :half], x[..., half:]
  return np.concatenate(
    [first * cos - second * sin, second * cos + first * sin], -1
  )


def attended(query, key, value):
  """Attends without a mask: [T, H, Dh] over [S, Hkv, Dh]."""
  group = query.shape[1] // key.shape[1]
  key, value = np.repeat(key, group, 1), np.repeat(value, group, 1)
  scores = np.einsum('thd,shd->hts', query, key) / np.sqrt(query.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum('hts,shd->thd', weights, value)
  return out.reshape(len(query), -1)


def heads_of(x, count):
  return x.reshape(len(x), count, -1)


def llada(raw, tensors, ids):
  """Returns logits [T, V]."""
  p = {k: v.astype(np.float64) for k, v in tensors.items()}
  eps, base = raw['rms_norm_eps'], raw['rope_theta']
  at = np.arange(len(ids))
  x = p['model.transformer.wte.weight'][ids]
  for i in range(raw['n_layers']):
    w = lambda name: p[f'model.transformer.blocks.{i}.{name}.weight']
    h = rms_norm(x, w('attn_norm'), eps)
    q = rotated(heads_of(h @ w('q_proj').T, raw['n_heads']), at, base)
    k = rotated(heads_of(h @ w('k_proj').T, raw['n_kv_heads']), at, base)
    v = heads_of(h @ w('v_proj').T, raw['n_kv_heads'])
    x = x + attended(q, k, v) @ w('attn_out').T
    h = rms_norm(x, w('ff_norm'), eps)
    x = x + (silu(h @ w('ff_proj').T) * (h @ w('up_proj').T)) @ w('ff_out').T
  x = rms_norm(x, p['model.transformer.ln_f.weight'], eps)
  return x @ p['model.transformer.ff_out.weight'].T


def mdlm(raw, tensors, ids):
  """Returns logits [T, V] at noise level 0."""
  p = {
    name.removeprefix('backbone.'): value.astype(np.float64)
    for name, value in tensors.items()
  }

  def affine(x, name):
    return x @ p[f'{name}.weight'].T + p[f'{name}.bias']

  frequencies = 10000.0 ** (-np.arange(128) / 128)
  angles = 0.0 * frequencies
  noise = np.concatenate([np.cos(angles), np.sin(angles)])
  c = affine(silu(affine(noise, 'sigma_map.mlp.0')), 'sigma_map.mlp.2')
  c = silu(c)
  x = p['vocab_embed.embedding'][ids]
  at = np.arange(len(ids))
  for i in range(raw['n_blocks']):
    name = f'blocks.{i}.'
    parts = np.split(affine(c, name + 'adaLN_modulation'), 6)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    h = layer_norm(x, p[name + 'norm1.weight']) * (1 + scale) + shift
    qkv = h @ p[name + 'attn_qkv.weight'].T
    q, k, v = (heads_of(part, raw['n_heads']) for part in np.split(qkv, 3, -1))
    out = attended(rotated(q, at, 1e4), rotated(k, at, 1e4), v)
    x = x + gate * (out @ p[name + 'attn_out.weight'].T)
    h = layer_norm(x, p[name + 'norm2.weight']) * (1 + scale_mlp) + shift_mlp
    h = gelu_tanh(affine(h, name + 'mlp.0'))
    x = x + gate_mlp * affine(h, name + 'mlp.2')
  shift, scale = np.split(affine(c, 'output_layer.adaLN_modulation'), 2)
  x = layer_norm(x, p['output_layer.norm_final.weight']) * (1 + scale) + shift
  return affine(x, 'output_layer.linear')


def dflash(raw, tensors, noise, hidden):
  """Returns the final states of a block [M, E].

  Args:
    raw: config.json.
    tensors: of the drafter.
    noise: [M, E] embeddings of the anchor and the masks.
    hidden: [T, F * E] states of the verifier before the anchor, joined.
  """
  p = {k: v.astype(np.float64) for k, v in tensors.items()}
  eps, base = raw['rms_norm_eps'], raw['rope_theta']
  heads, kv_heads = raw['num_attention_heads'], raw['num_key_value_heads']
  target = rms_norm(hidden @ p['fc.weight'].T, p['hidden_norm.weight'], eps)
  before, at = np.arange(len(hidden)), len(hidden) + np.arange(len(noise))
  x = noise
  group = raw['dflash_config'].get('conv_group_size')
  for i in range(raw['num_hidden_layers']):
    w = lambda name: p[f'layers.{i}.{name}.weight']

    def convolved(name, h):
      """Returns h before a sublayer, and what is done to its output."""
      base = p.get(f'layers.{i}.{name}.base_kernel')  # [2, taps, E]
      if base is None:
        return h, lambda out: out
      added = h @ w(f'{name}.kernel_projection').T
      added = added.reshape(len(h), *base.shape[:2], -1)

      def one(side, y):
        out = np.zeros_like(y)
        for slot in range(len(y)):
          for tap in range(min(base.shape[1], slot + 1)):
            for c in range(y.shape[1]):
              kernel = base[side, tap, c] + added[slot, side, tap, c // group]
              out[slot, c] += kernel * y[slot - tap, c]
        return out

      return one(0, h), lambda out: one(1, out)

    def key_value(h, positions):
      k = heads_of(h @ w('self_attn.k_proj').T, kv_heads)
      k = rms_norm(k, w('self_attn.k_norm'), eps)
      v = heads_of(h @ w('self_attn.v_proj').T, kv_heads)
      return rotated(k, positions, base), v

    h, finish = convolved(
      'attention_conv', rms_norm(x, w('input_layernorm'), eps)
    )
    q = heads_of(h @ w('self_attn.q_proj').T, heads)
    q = rotated(rms_norm(q, w('self_attn.q_norm'), eps), at, base)
    parts = zip(key_value(target, before), key_value(h, at))
    k, v = (np.concatenate(pair) for pair in parts)
    x = x + finish(attended(q, k, v) @ w('self_attn.o_proj').T)
    h = rms_norm(x, w('post_attention_layernorm'), eps)
    h, finish = convolved('mlp_conv', h)
    gated = silu(h @ w('mlp.gate_proj').T) * (h @ w('mlp.up_proj').T)
    x = x + finish(gated @ w('mlp.down_proj').T)
  return rms_norm(x, p['norm.weight'], eps)


def pair_scores(tensors, state, token):
  """Returns what a head adds to all tokens' scores [T, V].

  Args:
    tensors: of the drafter.
    state: [T, E] of the slots.
    token: [T] before them.
  """
  p = {k: v.astype(np.float64) for k, v in tensors.items()}
  if 'markov_head.markov_w1.weight' not in p:
    p = {k.removeprefix('candidate_selector.'): v for k, v in p.items()}
    edge = p['predecessor_codebook'][token]
    edge = edge * (state @ p['hidden_projection.weight'].T)
    return edge @ p['successor_codebook'].T
  p = {k.removeprefix('markov_head.'): v for k, v in p.items()}
  edge = p['markov_w1.weight'][token]
  if 'gate_proj.weight' in p:
    read = np.concatenate([state, edge], -1)
    gate = read @ p['gate_proj.weight'].T + p['gate_proj.bias']
    edge = edge / (1 + np.exp(-gate))
  return edge @ p['markov_w2.weight'].T


def eagle3(raw, tensors, embedded, hidden):
  """Returns the outputs before the last norm [T, E], and logits [T, W].

  Token by token, the first of them at position 1.

  Args:
    raw: config.json.
    tensors: of the drafter.
    embedded: [T, E] embeddings of the tokens.
    hidden: [S, 3 * E] states of the verifier at the token before each of the
      first S, joined; the others go on from the output before them.
  """
  p = {k: v.astype(np.float64) for k, v in tensors.items()}
  w = lambda name: p[f'midlayer.{name}.weight']
  eps, base = raw['rms_norm_eps'], raw['rope_theta']
  heads, kv_heads = raw['num_attention_heads'], raw['num_key_value_heads']
  keys, values, outputs, logits = [], [], [], []
  for t, embedding in enumerate(embedded):
    h = hidden[t] @ p['fc.weight'].T if t < len(hidden) else outputs[-1]
    x = rms_norm(embedding, w('input_layernorm'), eps)
    x = np.concatenate([x, rms_norm(h, w('hidden_norm'), eps)])[None]
    at = np.array([t + 1])
    q, k, v = (
      heads_of(x @ w(f'self_attn.{name}_proj').T, count)
      for name, count in (('q', heads), ('k', kv_heads), ('v', kv_heads))
    )
    keys.append(rotated(k, at, base))
    values.append(v)
    q = rotated(q, at, base)
    seen = attended(q, np.concatenate(keys), np.concatenate(values))[0]
    out = h + seen @ w('self_attn.o_proj').T
    g = rms_norm(out, w('post_attention_layernorm'), eps)
    gated = silu(g @ w('mlp.gate_proj').T) * (g @ w('mlp.up_proj').T)
    outputs.append(out + gated @ w('mlp.down_proj').T)
    logits.append(rms_norm(outputs[-1], p['norm.weight'], eps))
  return np.array(outputs), np.array(logits) @ p['lm_head.weight'].T
