"""Directories of tokenizers: ids, prompts and texts as in transformers."""

import json
import random as random_lib

import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe

_TEXTS = (
  "It's 1234 <|im_end|>and <x>more</s> of\n\n  that.",
  'a<|im_end|>b <|im_end|> c',
  '<s> </s><x>  <y> <pad><mask> <z>ab',
  'Ünïcödé 日本語 🙂 e\u0301',
  '',
  ' ',
  "ab ab . , ! n't 's",
)
_MERGES = [('a', 'b'), ('1', '2'), ('Ġ', 'a'), ('Ġa', 'b')]


def backend(added=('<s>', '</s>'), processed=False):
  """Returns byte-level BPE with some merges."""
  letters = tokenizer_bpe.byte_letters()
  vocabulary = letters + [a + b for a, b in _MERGES]
  result = tokenizers.Tokenizer(
    models.BPE({t: i for i, t in enumerate(vocabulary)}, _MERGES)
  )
  result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  result.decoder = tokenizers.decoders.ByteLevel()
  result.add_special_tokens(list(added))
  if processed:
    result.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 260)]
    )
  return result


def token(text, **flags):
  return (
    dict(
      content=text,
      special=False,
      lstrip=False,
      rstrip=False,
      normalized=False,
      single_word=False,
    )
    | flags
  )


PLAIN = {'tokenizer_class': 'PreTrainedTokenizerFast'}
TEMPLATE = (
  '{{ bos_token }}|{{ eos_token }}|{{ mask_token }}|{{ cls_token }}|'
  '{{ sep_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}|'
  '{{ tools is none }}{{ documents is none }}{{ xml is defined }}'
  '{{ additional_special_tokens }}{{ extra_special_tokens }}'
  '{% for m in messages %}<{{ m.role }}>{{ m["content"] }}{% endfor %}'
  '{{ add_generation_prompt }}'
)
# name -> the files of a directory besides tokenizer.json.
CASES = {
  'roles': {
    'tokenizer_config.json': PLAIN
    | {
      'bos_token': '<s>',
      'eos_token': '</s>',
      'unk_token': '<s>',
      'pad_token': '<pad>',
      'cls_token': '<x>',
      'sep_token': '<y>',
      'mask_token': '<mask>',
      'image_token': '<z>',
    }
  },
  'a role that is null': {
    'tokenizer_config.json': PLAIN | {'bos_token': None, 'eos_token': '</s>'}
  },
  'eos among the added tokens of the settings': {
    'tokenizer_config.json': PLAIN
    | {
      'eos_token': '<|im_end|>',
      'added_tokens_decoder': {'262': token('<|im_end|>', special=True)},
    }
  },
  'a role makes it special': {
    'tokenizer_config.json': PLAIN
    | {
      'eos_token': '<|im_end|>',
      'added_tokens_decoder': {'262': token('<|im_end|>')},
    }
  },
  'not special, strips': {
    'tokenizer_config.json': PLAIN
    | {
      'added_tokens_decoder': {
        '262': token('<|im_end|>', lstrip=True, rstrip=True),
        '263': token('<x>', normalized=True),
        '264': token('more', single_word=True),
      },
    }
  },
  'other flags than tokenizer.json': {
    'tokenizer_config.json': PLAIN
    | {
      'added_tokens_decoder': {
        '261': token('</s>', lstrip=True),
        '260': token('<s>', special=True),
      },
    }
  },
  'an ordinary token as a role': {
    'tokenizer_config.json': PLAIN | {'eos_token': 'ab'}
  },
  'additional ones': {
    'tokenizer_config.json': PLAIN
    | {
      'additional_special_tokens': ['<x>', '<y>'],
    }
  },
  'extra ones': {
    'tokenizer_config.json': PLAIN
    | {
      'extra_special_tokens': ['<x>', '<y>'],
      'eos_token': '<z>',
    }
  },
  'extra ones with roles': {
    'tokenizer_config.json': PLAIN
    | {
      'extra_special_tokens': {'image_token': '<x>', 'b_token': '<y>'},
    }
  },
  'a map beside it': {
    'tokenizer_config.json': PLAIN | {'eos_token': '</s>'},
    'special_tokens_map.json': {
      'eos_token': token('<|im_end|>'),
      'mask_token': '<mask>',
      'pad_token': {
        'content': '<pad>',
        'lstrip': True,
        'rstrip': False,
        'normalized': False,
        'single_word': False,
      },
    },
  },
  'a map is not read where the settings list tokens': {
    'tokenizer_config.json': PLAIN
    | {
      'eos_token': '</s>',
      'added_tokens_decoder': {'262': token('<x>', special=True)},
    },
    'special_tokens_map.json': {'eos_token': '<|im_end|>'},
    'added_tokens.json': {'<y>': 263},
  },
  'added_tokens.json': {
    'tokenizer_config.json': PLAIN | {'eos_token': '<|im_end|>'},
    'added_tokens.json': {'<|im_end|>': 262, '<x>': 263},
  },
  'without settings': {'special_tokens_map.json': {'eos_token': '</s>'}},
  'special tokens are split': {
    'tokenizer_config.json': PLAIN | {'split_special_tokens': True}
  },
  'bos that nobody adds': {
    'tokenizer_config.json': PLAIN
    | {
      'bos_token': '<s>',
      'add_bos_token': True,
      'add_eos_token': True,
      'eos_token': '</s>',
    }
  },
  'tidied': {
    'tokenizer_config.json': PLAIN | {'clean_up_tokenization_spaces': True}
  },
  'tidied, asked for twice': {
    'tokenizer_config.json': PLAIN
    | {
      'clean_up_tokenization_spaces': True,
      'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt'
      '_output': True,
    }
  },
  'named templates': {
    'tokenizer_config.json': PLAIN
    | {
      'chat_template': [
        {'name': 'tool_use', 'template': 'tools'},
        {'name': 'default', 'template': 'd{{ messages|length }}'},
      ]
    }
  },
  'a file of a template': {
    'tokenizer_config.json': PLAIN | {'chat_template': 'no'},
    'chat_template.jinja': 'file\r\n{{ messages[0].content }}\r\n',
  },
  'more files of templates': {
    'tokenizer_config.json': PLAIN | {'chat_template': 'no'},
    'chat_template.jinja': 'file',
    'additional_chat_templates/tool_use.jinja': 'tools',
    'additional_chat_templates/default.jinja': 'another',
  },
  'only other templates': {
    'tokenizer_config.json': PLAIN | {'chat_template': 'no'},
    'additional_chat_templates/tool_use.jinja': 'tools',
  },
}


def write(folder, files):
  for name, content in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    if not isinstance(content, str):
      content = json.dumps(content)
    with open(folder / name, 'w', encoding='utf-8', newline='') as file:
      file.write(content)


def compare(folder, reference):
  ours = tokenizer_lib.Tokenizer.from_directory(str(folder))
  size = len(reference)
  assert ours.vocab_size == size
  for text in _TEXTS:
    ids = ours.encode(text)
    assert ids == reference(text)['input_ids'], text
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
  every = [*range(size)]
  assert ours.decode(every) == reference.decode(every, skip_special_tokens=True)
  if reference.eos_token is not None:
    assert reference.eos_token_id in ours.end_ids
  for text in _TEXTS:
    chat = [{'role': 'user', 'content': text}]
    given = {'add_generation_prompt': True}
    try:
      wanted = reference.apply_chat_template(chat, tokenize=False, **given)
    except ValueError:
      with pytest.raises(errors.InputError, match='no chat template'):
        ours.render_chat(text)
      continue
    assert ours.render_chat(text) == wanted
    ids = reference.apply_chat_template(chat, **given)['input_ids']
    assert ours.encode_prompt(text, chat=True) == ids
  return ours


@pytest.mark.parametrize('processed', [False, True])
@pytest.mark.parametrize('name', CASES)
def test_files_beside_tokenizer_json(tmp_path, name, processed):
  transformers = pytest.importorskip('transformers')
  files = json.loads(json.dumps(CASES[name]))
  settings = files.get('tokenizer_config.json')
  if settings is not None:
    settings.setdefault('chat_template', TEMPLATE)
  backend(processed=processed).save(str(tmp_path / 'tokenizer.json'))
  write(tmp_path, files)
  read = transformers.PreTrainedTokenizerFast.from_pretrained
  compare(tmp_path, read(str(tmp_path)))


def test_a_template_of_a_file_for_tools(tmp_path):
  transformers = pytest.importorskip('transformers')
  backend(processed=False).save(str(tmp_path / 'tokenizer.json'))
  write(tmp_path, CASES['more files of templates'])
  folder = tmp_path / 'additional_chat_templates'
  (folder / 'tool_use.jinja').write_text('<{{ tools[0].name }}>')
  reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  ours = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  chat, given = [{'role': 'user', 'content': 'a'}], {'tools': [{'name': 'x'}]}
  wanted = reference.apply_chat_template(chat, tokenize=False, **given)
  assert ours.render_chat(chat, given) == wanted == '<x>'


_MERGED = {
  'bare': {},
  'roles': {
    'tokenizer_config.json': {
      'bos_token': '<s>',
      'eos_token': '</s>',
      'unk_token': '<unk>',
    }
  },
  'a space before': {'tokenizer_config.json': {'add_prefix_space': True}},
  'with ends': {
    'tokenizer_config.json': {
      'add_bos_token': True,
      'add_eos_token': True,
      'bos_token': '<s>',
    }
  },
  'older files': {
    'added_tokens.json': {'<|endoftext|>': 260, '<|im_end|>': 261},
    'special_tokens_map.json': {'eos_token': '<|im_end|>'},
  },
}


@pytest.mark.parametrize('kind', ['GPT2Tokenizer', 'Qwen2Tokenizer', 'gpt2'])
@pytest.mark.parametrize('name', _MERGED)
def test_vocab_and_merges(tmp_path, name, kind):
  """Old repositories have no tokenizer.json; their class says how to split."""
  transformers = pytest.importorskip('transformers')
  files = json.loads(json.dumps(_MERGED[name]))
  files['merges.txt'] = '#version: 0.2\n' + ''.join(
    f'{a} {b}\n' for a, b in _MERGES
  )
  files['vocab.json'] = backend(added=()).get_vocab()
  settings = files.setdefault('tokenizer_config.json', {})
  if kind == 'gpt2':
    files['config.json'] = {'model_type': 'gpt2'}
  else:
    settings['tokenizer_class'] = kind
  settings['chat_template'] = TEMPLATE
  write(tmp_path, files)
  compare(tmp_path, transformers.AutoTokenizer.from_pretrained(str(tmp_path)))


def test_vocab_and_merges_of_an_unknown_class(tmp_path):
  files = {
    'vocab.json': {'a': 0},
    'merges.txt': '',
    'tokenizer_config.json': {'tokenizer_class': 'CodeGenTokenizer'},
  }
  write(tmp_path, files)
  with pytest.raises(
    errors.InputError, match=r'CodeGenTokenizer.*save_pretrained'
  ):
    tokenizer_lib.Tokenizer.from_directory(str(tmp_path))


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('vocab.json', {'a': 'x'}, "'a' has the id 'x'"),
    ('vocab.json', [], 'list where an object'),
    ('merges.txt', 'a b c\n', 'line 1 is not two tokens'),
    ('merges.txt', 'a b\n\n1 2\n', 'line 2 is not two tokens'),
    ('merges.txt', 'a q\n', 'do not make a vocabulary'),
  ],
)
def test_damaged_vocab_and_merges(tmp_path, name, content, message):
  files = {
    'vocab.json': backend(added=()).get_vocab(),
    'merges.txt': 'a b\n',
    'tokenizer_config.json': {'tokenizer_class': 'GPT2Tokenizer'},
  }
  write(tmp_path, files | {name: content})
  with pytest.raises(errors.InputError, match=message):
    tokenizer_lib.Tokenizer.from_directory(str(tmp_path))


@pytest.mark.parametrize('asked', [True, False, None])
@pytest.mark.parametrize('stated', [True, False])
def test_a_space_before_the_text(tmp_path, stated, asked):
  """GPT-2's class goes by the settings, whatever tokenizer.json says."""
  transformers = pytest.importorskip('transformers')
  made = backend(added=('<|endoftext|>',))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=stated)
  made.save(str(tmp_path / 'tokenizer.json'))
  settings = {'tokenizer_class': 'GPT2Tokenizer', 'chat_template': TEMPLATE}
  settings |= {} if asked is None else {'add_prefix_space': asked}
  write(tmp_path, {'tokenizer_config.json': settings})
  reference = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
  ours = compare(tmp_path, reference)
  assert (ours.encode('ab') == ours.encode(' ab')) == bool(asked)


# What config.json says of the model, and which class reads its tokenizer.
_MODELS = {
  'llama': 'PreTrainedTokenizerFast',
  'qwen2': 'Qwen2TokenizerFast',
  'gemma3_text': 'GemmaTokenizerFast',
  'gpt2': 'GPT2Tokenizer',
}


@pytest.mark.parametrize('kind', _MODELS)
def test_roles_that_a_class_fills(tmp_path, kind):
  transformers = pytest.importorskip('transformers')
  names = {
    'gemma3_text': ('<pad>', '<eos>', '<bos>', '<unk>', '<mask>'),
    'llama': ('<unk>', '<s>', '</s>'),
  }.get(kind, ('<|endoftext|>',))
  made = backend(added=names)
  made.save(str(tmp_path / 'tokenizer.json'))
  files = {
    'config.json': {'model_type': kind},
    'tokenizer_config.json': {
      'tokenizer_class': _MODELS[kind],
      'chat_template': TEMPLATE,
    },
  }
  write(tmp_path, files)
  reference = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  ours = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  chat = [{'role': 'user', 'content': 'Hi'}]
  assert ours.render_chat('Hi') == reference.apply_chat_template(
    chat, tokenize=False, add_generation_prompt=True
  )
  assert ours.special == reference.special_tokens_map


def random_files(random):
  """Returns tokenizer.json's tokens, and settings that name some of them."""
  names = ['<w>', '<x>', '<y>', '<s>', 'ab']

  def flags():
    return {
      flag: random.random() < 0.4
      for flag in ('lstrip', 'rstrip', 'normalized', 'single_word')
    }

  def role():
    text = random.choice(names)
    if random.random() < 0.5:
      return text
    return {'__type': 'AddedToken', 'content': text, 'special': True} | flags()

  def roles(keys):
    return {key: role() for key in keys if random.random() < 0.3}

  own = [
    tokenizers.AddedToken(text, special=random.random() < 0.5, **flags())
    for text in random.sample(names[:4], random.randint(0, 3))
  ]
  settings = PLAIN | roles(
    (
      'bos_token',
      'eos_token',
      'unk_token',
      'pad_token',
      'cls_token',
      'mask_token',
      'image_token',
    )
  )
  kind = random.randrange(5)
  if kind == 0:
    settings['extra_special_tokens'] = roles(('image_token', 'b_token'))
  elif kind == 1:
    key = 'model_specific_special_tokens'
    settings[key] = roles(('image_token', 'b_tok'))
  elif kind < 4:
    key = ('extra_special_tokens', 'additional_special_tokens')[kind - 2]
    settings[key] = [role() for _ in range(random.randint(0, 3))]
  files = {'tokenizer_config.json': settings}
  if random.random() < 0.5:
    special = [random.random() < 0.5 for _ in own]
    settings['added_tokens_decoder'] = {
      str(260 + i): dict(content=t.content, special=special[i]) | flags()
      for i, t in enumerate(own)
    }
  elif random.random() < 0.5:
    files['special_tokens_map.json'] = {
      key: value
      if isinstance(value, str)
      else {k: v for k, v in value.items() if k != '__type'}
      for key, value in roles(('eos_token', 'pad_token')).items()
    }
  return own, files


_MIXED = 'a <w> <w> b<x> c <y><s> <w>d ab <s>'


@pytest.mark.parametrize('seed', range(40))
def test_tokens_with_several_roles(tmp_path, seed):
  transformers = pytest.importorskip('transformers')
  own, files = random_files(random_lib.Random(seed))
  backend(added=own).save(str(tmp_path / 'tokenizer.json'))
  write(tmp_path, files)
  reference = transformers.PreTrainedTokenizerFast.from_pretrained(
    str(tmp_path)
  )
  ours = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  ids = ours.encode(_MIXED)
  assert ids == reference(_MIXED)['input_ids'], (own, files)
  wanted = reference.decode(ids, skip_special_tokens=True)
  assert ours.decode(ids) == wanted, (own, files)
  assert ours.special == {
    k: v for k, v in reference.special_tokens_map.items() if isinstance(v, str)
  }


def llama_like(before):
  """Returns a tokenizer.json as Llama 2's: its class ignores `before`."""
  space = '\u2581'
  bytes_ = [f'<0x{byte:02X}>' for byte in range(256)]
  merges = [(space, 'a'), ('a', 'b'), (space + 'a', 'b'), (space, space)]
  words = [*bytes_, space, *'abcdefghi[INST]/<>s', *(a + b for a, b in merges)]
  words = ['<unk>', '<s>', '</s>', *dict.fromkeys(words)]
  made = tokenizers.Tokenizer(
    models.BPE(
      {text: i for i, text in enumerate(words)},
      merges,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  made.normalizer = tokenizers.normalizers.Sequence(before)
  made.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace(space, ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
    ]
  )
  made.add_special_tokens(['<unk>', '<s>', '</s>'])
  made.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return made


def like_llama():
  return llama_like(
    [
      tokenizers.normalizers.Prepend('\u2581'),
      tokenizers.normalizers.Replace(' ', '\u2581'),
    ]
  )


def like_gemma():
  return llama_like([tokenizers.normalizers.Replace(' ', '\u2581')])


def like_qwen():
  made = backend(added=('<s>', '</s>', '<|endoftext|>'))
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=False),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  return made


_AS_CLASS = {  # the file, tokenizer_class, model_type, more settings
  'llama': (like_llama, 'LlamaTokenizer', 'llama', {}),
  'llama, fast': (like_llama, 'LlamaTokenizerFast', 'llama', {}),
  'llama, not legacy': (
    like_llama,
    'LlamaTokenizer',
    'llama',
    {'legacy': False},
  ),
  'llama, legacy': (like_llama, 'LlamaTokenizer', 'llama', {'legacy': True}),
  'llama, no prefix': (
    like_llama,
    'LlamaTokenizer',
    'llama',
    {'add_prefix_space': False},
  ),
  'llama, byte level': (like_qwen, 'LlamaTokenizer', 'llama', {}),
  'mistral': (like_llama, 'LlamaTokenizer', 'mistral', {}),
  'phi3': (like_llama, 'LlamaTokenizer', 'phi3', {}),
  'as it is': (like_llama, 'PreTrainedTokenizerFast', 'llama', {}),
  'gemma': (
    like_gemma,
    'GemmaTokenizer',
    'gemma3_text',
    {'pad_token': '<unk>', 'mask_token': '<unk>'},
  ),
  'qwen2': (like_qwen, 'Qwen2Tokenizer', 'qwen2', {}),
  'qwen3': (like_qwen, 'Qwen2Tokenizer', 'qwen3', {}),
  'qwen2, without a class': (like_qwen, None, 'qwen2', {}),
  'qwen2, a prefix': (
    like_qwen,
    'Qwen2Tokenizer',
    'qwen2',
    {'add_prefix_space': True},
  ),
  'qwen2, tokens with flags': (
    like_qwen,
    'Qwen2Tokenizer',
    'qwen3',
    {
      'additional_special_tokens': ['<x>'],
      'eos_token': token('</s>', lstrip=True, __type='AddedToken'),
      'added_tokens_decoder': {
        '260': token('<s>'),
        '261': token('</s>', rstrip=True),
        '262': token('<|endoftext|>'),
        '263': token('<x>', lstrip=True),
        '264': token('<y>'),
        '265': token('<unk>'),
      },
    },
  ),
  'distilled': (like_qwen, 'LlamaTokenizerFast', 'qwen2', {}),
  'qwen2, another class': (like_qwen, 'PreTrainedTokenizerFast', 'qwen2', {}),
}


@pytest.mark.parametrize('name', _AS_CLASS)
def test_the_class_says_how_to_split(tmp_path, name):
  transformers = pytest.importorskip('transformers')
  made, kind, model, more = _AS_CLASS[name]
  made().save(str(tmp_path / 'tokenizer.json'))
  settings = {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'chat_template': (
      '{{ bos_token }}[INST] {{ messages[0].content }} [/INST]'
    ),
    **more,
  }
  settings |= {'tokenizer_class': kind} if kind else {}
  write(
    tmp_path,
    {
      'tokenizer_config.json': settings,
      'config.json': {'model_type': model},
    },
  )
  compare(tmp_path, transformers.AutoTokenizer.from_pretrained(str(tmp_path)))
