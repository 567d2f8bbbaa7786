"""A model that is a table, of which every probability is known: the next token depends on the last one alone."""

from types import SimpleNamespace

import torch
from isentrope import diagnose


class Words:
    """A tokenizer of words between blanks."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = None

    def __init__(self, words):
        self.words = ["<end>", *words]

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [self.words.index(word) for word in text.split()]}

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(self.words[int(i)] for i in ids if i or not skip_special_tokens)


class Table(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=len(logits), num_attention_heads=1, get_text_config=lambda: self.config)
        self.generation_config = SimpleNamespace(eos_token_id=0)

    def get_output_embeddings(self):
        return None

    def get_input_embeddings(self):
        return torch.nn.Embedding.from_pretrained(self.table.detach())

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.table[input_ids])

    def generate(self, ids, attention_mask, do_sample, max_new_tokens, pad_token_id):
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, self.table[ids[:, -1]].argmax(1, keepdim=True)], 1)
            if int(ids[0, -1]) == 0:
                break
        return ids


def model(words, probabilities):
    """probabilities: {(last word, next word): p}; what is left of a row is shared by the others."""
    tokenizer = Words(words)
    n = len(tokenizer.words)
    rows = torch.full((n, n), float("nan"))
    for (last, then), p in probabilities.items():
        rows[tokenizer.words.index(last), tokenizer.words.index(then)] = p
    for row in rows:
        left = 1 - row.nansum()
        row[row.isnan()] = left / row.isnan().sum()
    return diagnose.Model(Table(rows.log()), tokenizer, "table")
