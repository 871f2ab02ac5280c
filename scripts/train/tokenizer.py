"""Trains the tokenizer: byte-level BPE, 8192 pieces, DeepSeek's three-stage pre-tokenizer.

While training, every digit is a piece of its own, so no merge over digits is learned: copying and
arithmetic need that at this size. The saved file has the genuine rule \\p{N}{1,3}, which then gives
the same ids.

    python3 tokenizer.py DATA OUT/tokenizer.json [MEGABYTES]
"""
import json
import random
import sys
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import chat
import corpora
import tasks
from ember import EMBER

CJK = "[一-龥぀-ゟ゠-ヿ]+"
WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
SHARES = {  # of the sample's bytes
    "books_children.txt": 0.40, "books_fiction.txt": 0.14, "openstax.txt": 0.09,
    "chat_selfdialogue.jsonl": 0.12, "chat_sgd.jsonl": 0.10, "qa_fairytale.jsonl": 0.03,
    "chat_gsm8k.jsonl": 0.04, "stories_ccby.jsonl": 0.03,
}


def pre_tokenizer(digits):
    split = [pre_tokenizers.Split(Regex(r), "isolated") for r in (digits, CJK, WORDS)]
    return pre_tokenizers.Sequence(
        split + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def sample(data, megabytes):
    rng = random.Random(1)
    for name, share in SHARES.items():
        texts = corpora.paragraphs(data, name)
        rng.shuffle(texts)
        left = share * megabytes * 1e6
        for t in texts:
            left -= len(t)
            yield t + "\n\n"
            if left < 0:
                break
    for _ in range(int(megabytes * 150)):
        row = tasks.short_task(rng)
        yield json.dumps([m["content"] for m in row["messages"]])
        if row.get("tools"):
            yield chat.tool_text(row["tools"])


def train(data, out, megabytes):
    start = time.time()
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizer(r"\p{N}"), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=EMBER.vocab - len(chat.LAST_TOKENS), special_tokens=chat.FIRST_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=24,
        show_progress=False,
    )
    t.train_from_iterator(sample(data, megabytes), trainer)
    t.pre_tokenizer = pre_tokenizer(r"\p{N}{1,3}")
    for s in chat.LAST_TOKENS:
        token = AddedToken(s, special=s in chat.SPECIAL, normalized=False)
        (t.add_special_tokens if s in chat.SPECIAL else t.add_tokens)([token])
    assert t.get_vocab_size() == EMBER.vocab, t.get_vocab_size()
    t.save(out)
    return {"what": "tokenizer", "pieces": t.get_vocab_size(), "MB": megabytes,
            "seconds": round(time.time() - start, 1)}


if __name__ == "__main__":
    size = float(sys.argv[3]) if len(sys.argv) > 3 else 12.0
    print(json.dumps(train(sys.argv[1], sys.argv[2], size)))
