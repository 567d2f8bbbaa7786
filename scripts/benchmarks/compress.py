"""`isentrope compress` of a text of 10,000 words beside llmlingua's PromptCompressor (LLMLingua-2) with the same weights: the tagger of
configs/options/tag.yaml with 6 layers of width 384, trained for some steps, with byte pairs of the text that is compressed, the pages of docs/.

Ours is the command; theirs is compress_prompt() of a process that has opened the model, without what that took. So of ours, too, a row has what
remains without its start, that is without the median of what the same command took for ten words, and a row the whole command. They
cut a text differently (llmlingua ends stretches at sentences, pads them to 512 tokens, puts [CLS] and [SEP] around each, and takes marks for words of
their own), so that words near the threshold differ. Values first: ours keeps half the words to the word and theirs to a tenth of the text (words as
likely as its threshold go), and of the words without marks that ours keeps at least two thirds are kept by the other.

llmlingua is in float32, as is ours but in the rows of bfloat16 (--compute bfloat16). It loads the tokenizer of gpt-3.5 to count tokens, which takes the
network: in its place stands one that counts pieces of four letters. It is taken from PyPI into a folder of its own, without what it depends on, which is
here. Seconds are of the processor where there is one thread, so that what else a machine does counts less.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from timing import compare

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
PEERS = ["tokenizers"]
WORDS, RATE, TARGET = 10_000, 0.5, 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>"]
PACKAGES = ["llmlingua==0.2.2", "tiktoken", "nltk"]
RIVAL = """
import json, sys, time
sys.path.append(sys.argv[1])
import torch, tiktoken

class Counts:
    def encode(self, text, **_):
        return list(range(-(-len(text) // 4)))

tiktoken.encoding_for_model = lambda name: Counts()
torch.set_num_threads(int(sys.argv[3]))
from llmlingua import PromptCompressor
compressor = PromptCompressor(sys.argv[2], device_map="cpu", use_llmlingua2=True)
for line in sys.stdin:
    text = json.loads(line)
    start, clock = time.process_time(), time.perf_counter()
    found = compressor.compress_prompt(text, rate=RATE)
    print(json.dumps([found["compressed_prompt"], time.process_time() - start, time.perf_counter() - clock]), flush=True)
""".replace("RATE", str(RATE))


def prose():
    """The words of the pages of docs/."""
    return " ".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))).split()


def make_tokenizer(folder, words):
    """Byte pairs whose words begin with ▁, as those of xlm-roberta are told by llmlingua."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = [" ".join(words), *(json.loads(line)["prompt"] for line in (ROOT / "configs" / "options" / "tag.jsonl").read_text().splitlines())]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=SPECIAL))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 5, "pad_token_id": 0}))


def both_keep(ours, theirs):
    """Of the words without marks that one kept the share that the other did."""
    ours, theirs = (Counter(word for word in words if word.isalnum()) for words in (ours, theirs))
    return (ours & theirs).total() / ours.total()


def of_size(place, words, threads, rounds, environment, layers, width, heads, mlp, steps):
    subprocess.run([PROGRAM, "train", "configs/options/tag.yaml", f"run.dir={place}/run", "--quiet", f"tokenizer={{pretrained: {place}/../tokenizer}}",
                    f"model.num_hidden_layers={layers}", f"model.hidden_size={width}", f"model.num_attention_heads={heads}",
                    f"model.num_key_value_heads={heads}", f"model.intermediate_size={mlp}", "model.max_position_embeddings=512",
                    f"phases.tag.steps={steps}", "phases.tag.optimizer.lr=1e-3", "phases.tag.evaluation.every=0", "test={skip: true}"],
                   check=True, cwd=ROOT, env=environment)  # fmt: skip
    model = place / "xlm-roberta-large"  # by which llmlingua knows how words begin
    subprocess.run([PROGRAM, "export", place / "run", model], check=True, stdout=subprocess.DEVNULL, env=environment)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["IsentropeForTokenClassification"]}))
    text = " ".join(words)
    for name, given in (("text", text), ("start", " ".join(words[:10]))):
        (place / f"{name}.jsonl").write_text(json.dumps({"prompt": given}) + "\n")
    rival = subprocess.Popen([sys.executable, "-c", RIVAL, str(place / ".." / "packages"), str(model), str(threads)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)  # fmt: skip

    def theirs():
        rival.stdin.write(json.dumps(text) + "\n")
        rival.stdin.flush()
        found, cpu, wall = json.loads(rival.stdout.readline())
        return found, cpu if threads == 1 else wall

    def ours(compute, given):
        used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        told = subprocess.run([PROGRAM, "compress", place / "run", "--data", place / f"{given}.jsonl", "--rate", str(RATE), "--compute", compute], check=True,
                              stdout=subprocess.PIPE, env=environment, text=True)  # fmt: skip
        wall, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return told.stdout, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime if threads == 1 else wall

    contenders = {compute: lambda compute=compute: ours(compute, "text") for compute in ("float32", "bfloat16")} | {"llmlingua": theirs}
    seconds, starts, kept = {name: [] for name in contenders}, {"float32": [], "bfloat16": []}, {}
    for index in range(rounds + 1):  # the first warms up
        names = list(contenders)
        for name in names[index % 3 :] + names[: index % 3]:
            found, took = contenders[name]()
            kept[name] = found.split()
            if index > 0:
                seconds[name].append(took)
                if name in starts:
                    starts[name].append(ours(name, "start")[1])
    rival.stdin.close()
    rival.wait()
    assert len(kept["float32"]) == len(kept["bfloat16"]) == WORDS * RATE, (len(kept["float32"]), len(kept["bfloat16"]))
    assert abs(len(kept["llmlingua"]) / WORDS - RATE) < 0.1, len(kept["llmlingua"])
    for compute in ("float32", "bfloat16"):
        share = both_keep(kept[compute], kept["llmlingua"])
        assert share > 2 / 3, share
        seconds[f"{compute} alone"] = [taken - statistics.median(starts[compute]) for taken in seconds[compute]]
        about = {"shape": f"{WORDS:,} words, encoder {layers} × {width}, {share:.0%} alike", "dtype": compute, "threads": threads}
        yield {"op": "compress", **about, "target": TARGET, **compare(seconds, f"{compute} alone", "llmlingua")}
        yield {"op": "compress, whole command", **about, **compare(seconds, compute, "llmlingua")}


def rows(threads=1, rounds=7):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as place:
        words = prose()
        words = (words * (WORDS // len(words) + 1))[:WORDS]
        make_tokenizer(Path(place) / "tokenizer", words)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{place}/packages", *PACKAGES], check=True)
        (Path(place) / "encoder").mkdir()
        return list(of_size(Path(place) / "encoder", words, threads, rounds, environment, layers=6, width=384, heads=6, mlp=1024, steps=20))
