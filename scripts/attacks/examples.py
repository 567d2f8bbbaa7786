"""Mutated JSONL files of examples, for training or held out.

Right is a refusal that names file and line, or a run that does with the file what the clean one does, where the mutation keeps
the meaning. `wanted` of a mutation says which: refused, same (as the clean file), trained (with other data), or
several of these.
"""

import json
import shutil

from attacks.trial import contents, difference, run, train, workplace

TITLE = "mutated JSONL files, for training or held out"
COUNTS = {"full": 300, "quick": 60}
RIGHT = {"refused with file:line", "trained as meant"}
SECONDS = 30
LINES = 24
CONFIG = """
run: {dir: run, seed: 1, threads: 1, checkpoint_every: 0, device: cpu}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 32, max_position_embeddings: 24}
tokenizer: TOKENIZER
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    batch: {sequences: 4}
    optimizer: {kind: adamw, lr: 4.0e-3}
    steps: 2
  - name: grpo
    objective: {kind: grpo, loss: clip}
    data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    rollout: {prompts: 2, num_generations: 2, max_new_tokens: 4, mini_batches: 1}
    reward: [{kind: exact}]
    optimizer: {kind: adamw, lr: 1.0e-3}
    steps: 1
    evaluation: {every: 1, prompts: 4, sampled_prompts: 4, num_generations: 2}
test: {prompts: 4, sampled_prompts: 4, num_generations: 2}
"""
TOKENIZERS = {"characters": '{characters: "0123456789+-=A."}', "bytes": "{kind: bytes}"}
FILES = ["train.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl"]


def example(number):
    a, b = number % 9 + 1, number // 9 + 1
    return {"prompt": f"{a}+{b}=", "completion": f"{a + b}.", "answer": str(a + b)}


def clean(file):
    first = {"train.jsonl": 0, "validation.jsonl": 30, "test.jsonl": 45}[file]
    return [json.dumps(example(first + number)) for number in range(LINES)]


def changed(lines, i, **values):
    return [*lines[:i], json.dumps({**json.loads(lines[i]), **values}), *lines[i + 1 :]]


def text(lines):
    return ("\n".join(lines) + "\n").encode()


def without(lines, i, key):
    told = json.loads(lines[i])
    del told[key]
    return [*lines[:i], json.dumps(told), *lines[i + 1 :]]


def mutations(rng, lines, tokenizer, held_out):
    """{name: (bytes, wanted)} of one file: all mutations, with the line they hit drawn."""
    i = rng.randrange(len(lines))
    line, told = lines[i], json.loads(lines[i])
    put = lambda new: text([*lines[:i], new, *lines[i + 1 :]])
    key = rng.choice(["prompt", "completion", "answer"])
    kind = rng.choice([[], {}, True, None, 1.5, ["1"], {"a": 1}])
    torn = text(lines)[: -rng.randrange(2, len(lines[-1]))]
    foreign = tokenizer == "characters"  # text that is no digit or sign cannot be encoded
    learnt = "refused" + (" same trained" if held_out else "")  # of completions: held-out prompts with an answer need none
    part = rng.choice(["prompt", "completion"])
    of_part = "refused" if part == "prompt" else learnt
    return {
        "torn last line": (torn, "refused"),
        "torn line": (put(line[: rng.randrange(1, len(line))]), "refused"),
        "no end of the last line": (text(lines)[:-1], "same"),
        "BOM": (b"\xef\xbb\xbf" + text(lines), "same refused"),
        "BOM in the middle": (put("\ufeff" + line), "refused same"),
        "CRLF": (text(lines).replace(b"\n", b"\r\n"), "same refused"),
        "CR alone": (text(lines).replace(b"\n", b"\r"), "refused"),
        "NUL in a line": (put(line[:5] + "\0" + line[5:]), "refused"),
        "NUL escaped": (text(changed(lines, i, prompt="1\0+1=")), "refused" if foreign else "trained refused"),
        "NULs behind the end": (text(lines) + bytes(rng.choice([1, 512, 4096])), "refused"),
        "UTF-16": (text(lines).decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-16-be"])), "refused"),
        "not UTF-8": (text(lines).replace(b"prompt", b"prom\xff", 1) if rng.random() < 0.5 else text(lines).replace(b"+", b"\xe9", 1), "refused"),
        "lone surrogate": (put(line.replace('"prompt": "', '"prompt": "\\ud800')), "refused"),
        "long line": (text(changed(lines, i, **{part: "1" * rng.choice([30, 1000, 300000])})), of_part),
        "long answer": (text(changed(lines, i, answer="1" * 300000)), "refused trained same"),
        "key twice": (put(line[:-1] + f', "{key}": "7."}}'), "refused"),
        "key missing": (text(without(lines, i, part)), of_part),
        "answer missing": (text(without(lines, i, "answer")), "refused same trained"),
        "key in capitals": (put(line.replace("prompt", "Prompt", 1)), "refused"),
        "further keys": (text(changed(lines, i, note="text", list=[1, {"a": None}], **{"": 0, "é": "\u2028"})), "same"),
        "keys in another order": (put(json.dumps(dict(reversed(told.items())))), "same"),
        "spaces": (put("  " + line.replace(":", " : \t") + "  "), "same"),
        "escapes": (put(line.replace("+", "\\u002b", 1)), "same"),
        "wrong type": (text(changed(lines, i, **{key: kind})), "refused" if not (key == "answer" and kind is None) else "refused same trained"),
        "number as a prompt": (text(changed(lines, i, prompt=12)), "refused"),
        "integer as an answer": (text(changed(lines, i, answer=int(told["answer"]))), "same"),
        "U+2028": (put(line.replace("+", rng.choice("\u2028\u2029\u0085"), 1)), "refused" if foreign else "trained refused"),
        "emoji": (put(line.replace("+", "🙂", 1)), "refused" if foreign else "trained refused"),
        "empty file": (b"", "refused"),
        "blank file": (b"\n \n\t\n", "refused"),
        "blank line": (text([*lines[:i], rng.choice(["", "   ", "\t"]), *lines[i:]]), "same refused"),
        "empty prompt": (text(changed(lines, i, prompt="")), "refused"),
        "empty completion": (text(changed(lines, i, completion="")), learnt),
        "empty answer": (text(changed(lines, i, answer="")), "refused same trained"),
        "eos in the middle": (text(changed(lines, i, completion="1.2.")), learnt if foreign else "refused trained same"),
        "eos in the prompt": (text(changed(lines, i, prompt="1.+1=")), "refused trained"),
        "text outside the alphabet": (text(changed(lines, i, **{part: "1×2="})), of_part if foreign else "trained refused"),
        "a list for an object": (put(json.dumps([told])), "refused"),
        "a bare value": (put(rng.choice(["1", "null", '"text"', "true", "NaN"])), "refused"),
        "two objects on a line": (put(line + line), "refused"),
        "all lines as one list": (json.dumps([json.loads(one) for one in lines]).encode(), "refused"),
        "a trailing comma": (put(line[:-1] + ",}"), "refused"),
        "a comment": (put("// " + line), "refused"),
        "single quotes": (put(line.replace('"', "'")), "refused"),
        "nested very deep": (put('{"prompt": ' + "[" * 100000 + "]" * 100000 + "}"), "refused"),
        "nested very deep beside": (put(line[:-1] + ', "x": ' + "[" * 100000 + "]" * 100000 + "}"), "refused same"),
        "a number out of range": (put(line[:-1] + ', "x": 1e999}'), "refused same"),
        "an answer out of range": (put(line.replace(f'"answer": "{told["answer"]}"', '"answer": 123456789012345678901234567890')), "refused"),
        "a float as an answer": (text(changed(lines, i, answer=8.5)), "refused"),
        "a line doubled": (text([*lines, line]), "trained"),
        "gzip": (b"\x1f\x8b\x08\x00" + rng.randbytes(200), "refused"),
        "CSV": (b"prompt,completion\n1+1=,2.\n", "refused"),
        "one line": (text(lines[:1]), "trained refused"),
    }


def prepare(folder, quick):
    context = {}
    for tokenizer in TOKENIZERS:
        place = workplace(folder / f"clean-{tokenizer}")
        write(place, tokenizer)
        shutil.rmtree(place / "run", ignore_errors=True)
        outcome = run(train("config.yaml", []), place, SECONDS)
        if outcome.kind != "done":
            raise RuntimeError(f"the run on the clean files: {outcome.kind}: {outcome.message}")
        context[tokenizer] = contents(place / "run")
    return context


def write(folder, tokenizer):
    (folder / "config.yaml").write_text(CONFIG.replace("TOKENIZER", TOKENIZERS[tokenizer]))
    for file in set(FILES):
        (folder / file).write_bytes(text(clean(file)))


def attack(context, rng, folder, number):
    tokenizer = rng.choice(["characters", "characters", "bytes"])
    file = FILES[number // 5 % len(FILES)]
    write(folder, tokenizer)
    every = mutations(rng, clean(file), tokenizer, file != "train.jsonl")
    name = list(every)[number % len(every)]
    data, wanted = every[name]
    (folder / file).write_bytes(data)
    outcome = run(train("config.yaml", []), folder, SECONDS)
    verdict = {"attack": f"{name} in {file}, tokenizer of {tokenizer}; wanted: {wanted.replace(' ', ' or ')}", "message": outcome.message}
    if outcome.kind == "refused":
        # A file without examples has no line to name.
        named = f"{file}:" in outcome.message or (name in ("empty file", "blank file") and file in outcome.message)
        meant = "refused" in wanted
        return verdict | {"class": ("refused with file:line" if named else "no file:line") if meant else "refused what is right"}
    if outcome.kind != "done":
        return verdict | {"class": outcome.kind}
    same = not difference(context[tokenizer], contents(folder / "run"))
    right = "trained" in wanted or ("same" in wanted and same)
    return verdict | {"class": "trained as meant" if right else "trained on what is wrong" if wanted == "refused" else "differs from the clean file"}
