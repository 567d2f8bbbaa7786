"""A training step of a model of GPT-2's size (124M): 12 layers of width 768, 12 heads, 4 sequences of 64 tokens, float32: forward, backward,
gradient norm and AdamW. Ours is `isentrope.Trainer` with the metrics that it writes at every step; the model is a Llama of those sizes (MLP 2048 of three
matrices, as many weights as GPT-2's two of 3072; SmolLM2's 49152 tokens in place of GPT-2's 50257, tied).

PyTorch has the same Llama, weights and tokens, with fused AdamW, eager and compiled. llm.c's CPU program has GPT-2 itself with 49152 tokens and no gradient
norm. It is in no package: LLMC names a clone of github.com/karpathy/llm.c, and the row is left out without; it is compiled with llm.c's own flags. Values
first: the loss of the first step is PyTorch's of one of the windows that the text has, and llm.c's is that of transformers' GPT-2 with its weights."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from finetune_worker import GPT2_SEQUENCES, RATE, WINDOW
from plain_model import PlainDecoder
from smollm2 import ROOT, Worker, folder
from timing import compare

PEERS = ["transformers"]
TARGETS = {"eager PyTorch": 1.2, "compiled PyTorch": 1.2, "llm.c, GPT-2": 1.5}
SHAPE = {"layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "mlp": 2048, "vocabulary": 49152, "context": 64}
# The Makefile's of llm.c, with OpenMP as it sets it where it finds it.
FLAGS = ["-Ofast", "-fno-finite-math-only", "-Wno-unused-result", "-Wno-ignored-pragmas", "-Wno-unknown-attributes", "-march=native", "-fopenmp", "-DOMP",
         "-DTESTING"]  # fmt: skip


def model_folder(where):
    """A Llama of SHAPE drawn at random, with SmolLM2's tokenizer; and its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=SHAPE["width"], num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"],
                         num_key_value_heads=SHAPE["kv_heads"], intermediate_size=SHAPE["mlp"], vocab_size=SHAPE["vocabulary"],
                         max_position_embeddings=SHAPE["context"], rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(where)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder() / name, where)
    return dict(model.state_dict())


def batch(offset=0, sequences=GPT2_SEQUENCES):
    """[sequences, 64 + 1]: the same window in every row, from its token offset on, each token with its next."""
    from tokenizers import Tokenizer

    row = Tokenizer.from_file(str(folder() / "tokenizer.json")).encode(WINDOW, add_special_tokens=False).ids
    assert len(row) == SHAPE["context"], len(row)
    return torch.tensor([row * 3] * sequences)[:, offset : offset + len(row) + 1]


class Plain:
    """The rival's step. Eager and compiled share weights and optimiser: neither depends on their values."""

    def __init__(self, weights, tokens):
        self.model = PlainDecoder(weights, SHAPE)
        self.model.head = self.model.embedding
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
        self.tokens = tokens
        self.losses = {"eager PyTorch": self.loss, "compiled PyTorch": torch.compile(self.loss)}

    def loss(self, tokens):
        logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    def has_loss(self, loss):
        """Whether some cut of the text into windows gives it: ours draws where the first one begins."""
        with torch.no_grad():
            return any(abs(self.loss(batch(offset, 1)).item() - loss) <= 1e-4 * loss for offset in range(SHAPE["context"]))

    def step(self, name):
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.losses[name](self.tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": loss.item(), "seconds": time.perf_counter() - start}


class LlmC:
    def __init__(self, clone, where, tokens, threads):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        C, L, V, T = SHAPE["width"], SHAPE["layers"], SHAPE["vocabulary"], SHAPE["context"]
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=SHAPE["heads"], bos_token_id=1, eos_token_id=2)).eval()
        weights = model.state_dict()
        with torch.no_grad():
            self.wanted = F.cross_entropy(model(tokens[:, :-1]).logits.view(-1, V), tokens[:, 1:].reshape(-1)).item()
        with open(where / "gpt2.bin", "wb") as file:
            header = np.zeros(256, np.int32)
            header[:8] = 20240326, 3, T, V, L, SHAPE["heads"], C, V
            file.write(header.tobytes())
            for name in ("wte", "wpe", "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
                         "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_f.weight", "ln_f.bias"):  # fmt: skip
                whole = {"wte": "wte.weight", "wpe": "wpe.weight"}.get(name, name)
                for at in [f"h.{i}." for i in range(L)] if f"transformer.h.0.{name}" in weights else [""]:
                    weight = weights[f"transformer.{at}{whole}"]
                    file.write((weight.T if ".c_" in name and weight.dim() == 2 else weight).contiguous().numpy().tobytes())  # GPT-2 keeps them [in, out]
        tokens.to(torch.int32).numpy().tofile(where / "rows.bin")
        program = where / "llmc_step"
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, f"-I{clone}", str(ROOT / "scripts/benchmarks/llmc_step.c"), "-lm", "-o", str(program)], check=True)
        self.process = subprocess.Popen([program, where / "gpt2.bin", where / "rows.bin", str(GPT2_SEQUENCES), str(T), str(RATE)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})  # fmt: skip

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("llm.c's program ended")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def rows(rounds=7, threads=1):
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        plain = Plain(model_folder(where / "model"), batch())
        worker = Worker("ours", "pretrain", threads, where, model=str(where / "model"))
        steps = {"ours": worker, **{rival: lambda rival=rival: plain.step(rival) for rival in plain.losses}}
        clone, llm_c = os.environ.get("LLMC"), None
        if clone and (Path(clone) / "train_gpt2.c").exists():
            llm_c = LlmC(clone, where, batch(), threads)
            steps["llm.c, GPT-2"] = llm_c.step
        else:
            print("no row of llm.c: LLMC is not the folder of a clone (git clone https://github.com/karpathy/llm.c)", flush=True)
        first = {"ours": worker()["loss"]}
        assert plain.has_loss(first["ours"]), f"loss of the first step: ours {first['ours']}, PyTorch's of no window"
        for rival in [*plain.losses, *(["llm.c, GPT-2"] if llm_c else [])]:
            with torch.no_grad():  # of the weights as they are now: eager and compiled share them
                wanted = llm_c.wanted if rival == "llm.c, GPT-2" else plain.loss(plain.tokens).item()
            first[rival] = steps[rival]()["loss"]
            assert abs(first[rival] - wanted) <= 1e-4 * wanted, f"loss of the first step: {rival} {first[rival]}, wanted {wanted}"
        seconds = {rival: [] for rival in steps}
        for round_ in range(rounds + 1):
            names, turn = list(steps), round_ % len(steps)
            for rival in names[turn:] + names[:turn]:
                seconds[rival].append(steps[rival]()["seconds"])
        seconds = {rival: times[1:] for rival, times in seconds.items()}
        worker.end()
        if llm_c:
            llm_c.close()
    return [{"op": "training step, GPT-2's size", "shape": f"{GPT2_SEQUENCES} × {SHAPE['context']} tokens", "dtype": "float32", "threads": threads,
             **compare(seconds, "ours", rival), "target": TARGETS[rival]} for rival in steps if rival != "ours"]  # fmt: skip
