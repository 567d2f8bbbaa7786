"""Mutated configurations: read and printed, and a sample of those that are accepted is trained for some steps.

Right is a configuration that is accepted, or refused with a message that a user can act on.
"""

import copy
import random

import yaml

from attacks.trial import ROOT, run, train

TITLE = "mutated configurations, read and printed"
COUNTS = {"full": 3000, "quick": 120}
RIGHT = {"accepted", "refused", "trained", "refused at the start"}
READ_SECONDS, TRAIN_SECONDS = 10, 30
TRAINED = 2  # one in so many of those that are accepted and small
LARGEST = 5e10  # by work(), where configs/tiny/grpo.yaml is 1.3e10 and takes a second: what is larger is honestly slow, and not trained
EASY = {"steps": 2, "checkpoint_every": 0, "cache": "tokens"}

NUMBERS = [0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-9, 1e-300, 1e-320, 1e9, 1e12, 1e38, 1e300, 2**31, 2**31 - 1, -(2**31), 2**32, 2**32 + 1, 2**53,
           2**61, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64, 65536, 65537, 1000000, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", " ", "auto", "none", "null", "true", "cpu", "grpo", "sft", "pretrain", "adamw", "muon", "é", "日本語", "\u2028", "\u0000", "\x1b[31m", "🙂",
         "a" * 300, "b" * 100000, "../..", ".", "/dev/null", "/dev/zero", "/proc/self/status", "/nowhere/at/all", "configs/tiny", "configs/tiny/sft.yaml",
         "0x10", "1_000", "1e400", "-", "~", "%s%n", "$HOME", "{", "[0-9", "(a+)+$", "((((((((((a{99}){99}){99})*)*)*)*)*)*)*", "(?<n>a)", "\\"]


def load(path):
    return yaml.safe_load(path.read_text())


def bases():
    """[(name, tree)] of all configurations in the tree; the tiny ones, which can be trained, three times and with few steps."""
    found = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        tree = load(path)
        if path.parent.name == "tiny":
            for phase in tree["phases"]:
                phase["steps"] = EASY["steps"]
        found += [(path.relative_to(ROOT).as_posix(), tree)] * (3 if path.parent.name == "tiny" else 1)
    return found


def prepare(folder, quick):
    return {"bases": bases()}


# ---- mutations of the tree ------------------------------------------------------------------------------------------


def places(node, path=()):
    """Paths of all keys and items below node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def parent_of(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


def value(rng):
    """A value of any kind."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    return rng.choice([None, True, False, [], {}, [[]], {"": ""}, [None], {"kind": "sft"}, [1] * 50, {"a": {"b": {"c": 1}}}])


def typo(rng, key):
    """A key that is nearly the same."""
    if not key:
        return rng.choice(TEXTS)
    i = rng.randrange(len(key))
    return rng.choice([key[:i] + key[i + 1 :], key[:i] + rng.choice("abcxyz_.é") + key[i:], key.upper(), key + " ", key * 20, "", " "])


def deep(rng):
    """A value that is nested very deep, as lists, maps or both."""
    depth = rng.choice([10, 100, 1000, 5000])
    opened, closed = rng.choice([("[", "]"), ("{a: ", "}"), ("[{a: ", "}]")])
    return opened * depth + "1" + closed * depth


def mutate_tree(rng, tree, others):
    """One change of the tree, in place. Returns what was done."""
    path = rng.choice(list(places(tree)) or [()])
    if not path:
        return "nothing"
    parent, key = parent_of(tree, path), path[-1]
    at = ".".join(map(str, path))
    what = rng.choice(["value", "value", "number", "number", "delete", "rename", "add", "swap", "type", "graft", "double"])
    if what == "value":
        parent[key] = value(rng)
    elif what == "number":
        leaves = [p for p in places(tree) if isinstance(parent_of(tree, p)[p[-1]], (int, float))]
        path = rng.choice(leaves) if leaves else path
        at = ".".join(map(str, path))
        parent_of(tree, path)[path[-1]] = rng.choice(NUMBERS)
    elif what == "delete":
        del parent[key]
    elif what == "rename" and isinstance(parent, dict):
        parent[typo(rng, str(key))] = parent.pop(key)
    elif what == "add":
        target = parent[key] if isinstance(parent[key], dict) else parent
        if isinstance(target, dict):
            target[rng.choice(["seed", "kind", "steps", "lr", "window", "name", "", "é", "x" * 300, 1, None, True])] = value(rng)
        else:
            target.append(value(rng))
    elif what == "swap":  # with another place of the same tree, as of another phase
        other = rng.choice(list(places(tree)))
        if other[: len(path)] != path and path[: len(other)] != other:
            there = parent_of(tree, other)
            parent[key], there[other[-1]] = there[other[-1]], parent[key]
    elif what == "type":
        old = parent[key]
        parent[key] = rng.choice([[old], {"value": old}, str(old), [old, old], {str(old)[:20]: old}])
    elif what == "graft":  # a part of another configuration
        other = rng.choice(others)
        there = rng.choice(list(places(other)))
        parent[key] = copy.deepcopy(parent_of(other, there)[there[-1]])
    elif what == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    return f"{what} at {at[:100]}"


# ---- mutations of the text ------------------------------------------------------------------------------------------


def mutate_text(rng, text):
    """One change of the YAML text as bytes. Returns (bytes, what was done)."""
    lines = text.split("\n")
    i = rng.randrange(len(lines))
    key = lines[i].split(":")[0].strip() or "run"
    what = rng.choice(["bytes", "cut", "repeat", "alias", "own alias", "laughs", "deep", "tab", "quote", "documents", "encoding", "tag", "merge",
                       "control", "long line", "many keys", "indent", "comment"])  # fmt: skip
    if what == "bytes":
        data = bytearray(text.encode())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data), what
    if what == "cut":
        return text[: rng.randrange(len(text))].encode(), what
    if what == "encoding":
        encoding = rng.choice(["utf-8-sig", "utf-16", "utf-32", "latin-1"])
        return (text + "# é\n").encode(encoding), f"{what} {encoding}"
    if what == "repeat":
        lines.insert(i, lines[i])
    elif what == "alias":
        lines.insert(0, f"x{rng.randrange(9)}: &x {rng.choice(['1', '[1, 2]', '{a: 1}', 'text'])}")
        lines[i] = lines[i].split(":")[0] + ": *" + rng.choice(["x", "y"])
    elif what == "own alias":
        lines.insert(0, rng.choice(["x: &x [*x]", "x: &x {a: *x}", "model: &m {layers: *m}", "run: &r {dir: [*r]}"]))
    elif what == "laughs":
        lines[:0] = ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, rng.choice([3, 9, 20]))]
    elif what == "deep":
        lines[i] = f"{lines[i].split(':')[0]}: {deep(rng)}"
    elif what == "tab":
        lines[i] = lines[i].replace("  ", "\t", 1) if "  " in lines[i] else "\t" + lines[i]
    elif what == "quote":
        lines[i] += rng.choice(['"', "'", " |", " >", " &", " *", " !", " %", " @", " `", "}", "]", "{", "["])
    elif what == "documents":
        lines.insert(i, rng.choice(["---", "...", "--- !x"]))
    elif what == "tag":
        lines[i] = lines[i].replace(": ", rng.choice([": !!str ", ": !!int ", ": !x ", ": !!binary ", ": !!float "]), 1)
    elif what == "merge":
        lines.insert(0, "base: &base {seed: 1}")
        lines.insert(i + 1, rng.choice(["<<: *base", "  <<: *base"]))
    elif what == "control":
        lines[i] += rng.choice(["\u0000", "\u0007", "\u0085", "\u2028", "\ufeff", "\x7f", "\r"])
    elif what == "long line":
        lines[i] = f"{key}: " + "z" * rng.choice([3000, 100000, 1000000])
    elif what == "many keys":
        lines[i:i] = [f"key{n}: {n}" for n in range(rng.choice([10, 1000, 20000]))]
    elif what == "indent":
        lines[i] = " " * rng.randrange(1, 5) + lines[i]
    elif what == "comment":
        lines[i] = lines[i].replace(" ", "#", 1)
    return "\n".join(lines).encode("utf-8", "surrogatepass"), f"{what} at line {i + 1}"


def override(rng, tree):
    path = ".".join(map(str, rng.choice(list(places(tree)))))
    return rng.choice([f"{path}={value(rng)}", f"{path}", f"{typo(rng, path)}=1", f"={path}", f"{path}=[", f"{path}={{a: 1}}", f"{path}==1"])[:5000]


# ---- the attack -----------------------------------------------------------------------------------------------------


UNCOUNTED = {"held_out": 1e5, "train": 1e5, "steps_max": 1e5}  # work that is not per token: most of what is trained


def work(text):
    """Multiplications of a step or an evaluation of a resolved configuration, roughly; infinite where they cannot be told."""
    try:
        tree = yaml.safe_load(text)
        if any(path[-1] in UNCOUNTED and (parent_of(tree, path)[path[-1]] or 0) > UNCOUNTED[path[-1]] for path in places(tree)):
            return float("inf")
        model = tree["model"]
        size = model["num_hidden_layers"] * model["hidden_size"] * (4 * model["hidden_size"] + 3 * model["intermediate_size"] + 2 * model["max_position_embeddings"]) + 300 * model["hidden_size"]
        sequences = [1]
        for part in [*tree["phases"], {"evaluation": tree["test"]}]:
            sequences.append(part.get("batch", {}).get("sequences", 0))
            if rollout := part.get("rollout"):
                sequences.append(rollout["prompts"] * rollout["num_generations"] * rollout["mini_batches"])
            told = part["evaluation"]
            sequences.append(max(told["windows"], told["prompts"] + told["sampled_prompts"] * told["num_generations"]))
        return 6.0 * size * model["max_position_embeddings"] * max(sequences)
    except (KeyError, TypeError, yaml.YAMLError, OverflowError):
        return float("inf")


def attack(context, rng, folder, number):
    name, tree = rng.choice(context["bases"])
    tree = copy.deepcopy(tree)
    others = [other for _, other in context["bases"]]
    done = [mutate_tree(rng, tree, others) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
    data = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False, width=10**6)
    if not done or rng.random() < 0.2:
        data, what = mutate_text(rng, data)
        done.append(what)
    else:
        data = data.encode("utf-8", "surrogatepass")
    overrides = [override(rng, tree)] if rng.random() < 0.15 and list(places(tree)) else []
    (folder / "config.yaml").write_bytes(data)
    if overrides:
        done.append(f"override {overrides[0][:60]!r}")
    verdict = {"attack": f"{name}: {'; '.join(done)}"}

    def read():
        from isentrope import _C

        return _C.print_config("config.yaml", overrides)

    outcome = run(read, folder, READ_SECONDS)
    verdict |= {"class": "accepted" if outcome.kind == "done" else outcome.kind, "message": outcome.message}
    if outcome.kind == "done" and random.Random(number).random() < 1 / TRAINED and work(outcome.value) < LARGEST:
        kept = [*overrides, "run.dir=run", "run.checkpoint_every=0"]
        outcome = run(train("config.yaml", kept, steps=5), folder, TRAIN_SECONDS)
        names = {"done": "trained", "refused": "refused at the start", "hang": "no end in training"}
        verdict |= {"class": names.get(outcome.kind, f"{outcome.kind} in training"), "message": outcome.message}
    return verdict
