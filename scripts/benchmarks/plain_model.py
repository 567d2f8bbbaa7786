"""The rivals of csrc/model and of the rollouts: the same decoder as a user of PyTorch would write it by hand, and the
program tests/csrc/model_bench.cpp beside it."""

import json
import math
import os
import subprocess
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

QUICKSTART = dict(layers=3, width=64, heads=4, kv_heads=4, mlp=192, vocabulary=25, context=64)


class Program:
    """tests/csrc/model_bench.cpp, kept running; each call is one command and returns its JSON object."""

    def __init__(self, path, threads=1, **shape):
        arguments = [f"{key}={value}" for key, value in {**QUICKSTART, **shape, "threads": threads}.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)

    def __call__(self, command, path=""):
        self.process.stdin.write(f"{command} {path}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"model_bench: {answer['error']}")
        return answer

    def weights(self):
        """{Hugging Face name: tensor} of the program's model."""
        with tempfile.NamedTemporaryFile() as file:
            shapes = self("dump", file.name)["weights"]
            flat = torch.from_numpy(np.fromfile(file.name, dtype=np.float32))
        parts = flat.split([math.prod(shape) for _, shape in shapes])
        return {name: part.view(shape).clone() for (name, shape), part in zip(shapes, parts)}

    def logits(self, shape):
        """Logits of the program's fixed token batch, [B, T, V] = shape."""
        with tempfile.NamedTemporaryFile() as file:
            self("logits", file.name)
            return torch.from_numpy(np.fromfile(file.name, dtype=np.float32)).view(shape)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def fixed_tokens(batch, length, vocabulary=QUICKSTART["vocabulary"]):
    """[batch, length] int64: the batch that model_bench's forward, update and logits take."""
    return (torch.arange(batch * length) * 7919 % 104729 % vocabulary).view(batch, length)


class PlainDecoder(torch.nn.Module):
    """Llama in eager PyTorch with joined projections and scaled_dot_product_attention."""

    def __init__(self, weights, shape=QUICKSTART):
        super().__init__()
        self.shape = shape
        layers, heads, width = shape["layers"], shape["heads"], shape["width"]
        self.size = width // heads
        self.eps = 1e-5

        def parameter(*names):
            return torch.nn.Parameter(torch.cat([weights[name] for name in names]))

        self.embedding = parameter("model.embed_tokens.weight")
        self.final_norm = parameter("model.norm.weight")
        self.head = parameter("lm_head.weight")
        self.layers = torch.nn.ModuleList()
        for i in range(layers):
            block, at = torch.nn.Module(), f"model.layers.{i}."
            block.input_norm = parameter(at + "input_layernorm.weight")
            block.qkv = parameter(*(f"{at}self_attn.{x}_proj.weight" for x in "qkv"))
            block.o = parameter(at + "self_attn.o_proj.weight")
            block.post_norm = parameter(at + "post_attention_layernorm.weight")
            block.gate_up = parameter(at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight")
            block.down = parameter(at + "mlp.down_proj.weight")
            self.layers.append(block)
        angle = torch.outer(torch.arange(shape["context"]).double(),
                            10000.0 ** (-torch.arange(0, self.size, 2).double() / self.size))
        self.register_buffer("cosine", torch.cat([angle.cos(), angle.cos()], -1).float())
        self.register_buffer("sine", torch.cat([angle.sin(), angle.sin()], -1).float())

    def norm(self, x, weight):
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    @staticmethod
    def rotate(x, cosine, sine):
        low, high = x.chunk(2, -1)
        return x * cosine + torch.cat([-high, low], -1) * sine

    def mlp(self, x, block):
        gate, up = F.linear(self.norm(x, block.post_norm), block.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, block.down)

    def forward(self, tokens):
        B, T = tokens.shape
        H, G, D = self.shape["heads"], self.shape["kv_heads"], self.size
        cosine, sine = self.cosine[:T], self.sine[:T]
        x = F.embedding(tokens, self.embedding)
        for block in self.layers:
            qkv = F.linear(self.norm(x, block.input_norm), block.qkv).view(B, T, H + 2 * G, D).transpose(1, 2)
            q, k, v = qkv.split([H, G, G], 1)
            q, k = self.rotate(q, cosine, sine), self.rotate(k, cosine, sine)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, H * D), block.o)
            x = self.mlp(x, block)
        return F.linear(self.norm(x, self.final_norm), self.head)


class StaticCacheLoop:
    """A hand-written sampling loop: keys and values in buffers of full length, one token for all rows a step."""

    def __init__(self, model, rows, length, compiled=False):
        self.model, self.length = model, length
        shape, layers = (rows, model.shape["heads"], length, model.size), range(model.shape["layers"])
        self.keys, self.values = [torch.zeros(shape) for _ in layers], [torch.zeros(shape) for _ in layers]
        self.positions = torch.arange(length)
        self.fixed = torch.compile(self.fixed_step) if compiled else None

    def layer(self, x, i, q_rows, attend):
        model, block = self.model, self.model.layers[i]
        B, T, C = x.shape
        H, D = model.shape["heads"], model.size
        q, k, v = F.linear(model.norm(x, block.input_norm), block.qkv).view(B, T, 3 * H, D).transpose(1, 2).split(H, 1)
        cosine, sine = q_rows
        y = attend(i, model.rotate(q, cosine, sine), model.rotate(k, cosine, sine), v)
        return model.mlp(x + F.linear(y.transpose(1, 2).reshape(B, T, C), block.o), block)

    def prefill(self, tokens):
        T = tokens.shape[1]

        def attend(i, q, k, v):
            self.keys[i][:, :, :T], self.values[i][:, :, :T] = k, v
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        x = F.embedding(tokens, self.model.embedding)
        for i in range(len(self.model.layers)):
            x = self.layer(x, i, (self.model.cosine[:T], self.model.sine[:T]), attend)
        return F.linear(self.model.norm(x[:, -1], self.model.final_norm), self.model.head)

    def step(self, token, at):
        def attend(i, q, k, v):
            self.keys[i][:, :, at], self.values[i][:, :, at] = k[:, :, 0], v[:, :, 0]
            keys, values = self.keys[i][:, :, : at + 1], self.values[i][:, :, : at + 1]
            return torch.matmul((torch.matmul(q, keys.transpose(2, 3)) / math.sqrt(self.model.size)).softmax(-1), values)

        x = F.embedding(token, self.model.embedding)
        for i in range(len(self.model.layers)):
            x = self.layer(x, i, (self.model.cosine[at], self.model.sine[at]), attend)
        return F.linear(self.model.norm(x[:, 0], self.model.final_norm), self.model.head)

    def fixed_step(self, token, at, noise):
        """One step whose shapes do not change, sampling included, for torch.compile. at: [1] int64."""

        def attend(i, q, k, v):
            self.keys[i].index_copy_(2, at, k)
            self.values[i].index_copy_(2, at, v)
            scores = torch.matmul(q, self.keys[i].transpose(2, 3)) / math.sqrt(self.model.size)
            return torch.matmul(scores.masked_fill(self.positions > at, -torch.inf).softmax(-1), self.values[i])

        x = F.embedding(token, self.model.embedding)
        for i in range(len(self.model.layers)):
            x = self.layer(x, i, (self.model.cosine[at], self.model.sine[at]), attend)
        logits = F.linear(self.model.norm(x[:, 0], self.model.final_norm), self.model.head)
        return (logits - noise.log()).argmax(-1, keepdim=True)

    @torch.no_grad()
    def __call__(self, prompts, new_tokens, greedy=False):
        """prompts [B, T] → completions [B, new_tokens]. Tokens are argmax of logit − log(exponential draw)."""
        def draw(logits):
            noise = torch.ones_like(logits) if greedy else torch.empty_like(logits).exponential_()
            return noise

        logits, T = self.prefill(prompts), prompts.shape[1]
        token = (logits - draw(logits).log()).argmax(-1, keepdim=True)
        out = [token]
        for at in range(T, T + new_tokens - 1):
            if self.fixed:
                token = self.fixed(token, torch.tensor([at]), draw(logits))
            else:
                logits = self.step(token, at)
                token = (logits - draw(logits).log()).argmax(-1, keepdim=True)
            out.append(token)
        return torch.cat(out, 1)

    @torch.no_grad()
    def with_logprobs(self, prompts, new_tokens, forbidden):
        """prompts [B, T] → completions and their log-probabilities, [B, new_tokens]; token `forbidden` is not drawn."""
        logits, T = self.prefill(prompts), prompts.shape[1]
        tokens, logprobs = [], []
        for at in range(T, T + new_tokens):
            race = logits - torch.empty_like(logits).exponential_().log()
            race[:, forbidden] = -torch.inf
            tokens.append(race.argmax(-1, keepdim=True))
            logprobs.append(logits.gather(1, tokens[-1]) - logits.logsumexp(-1, keepdim=True))
            if at < T + new_tokens - 1:
                logits = self.step(tokens[-1], at)
        return torch.cat(tokens, 1), torch.cat(logprobs, 1)
