"""What each figure shows, and what each word of the page means."""

from __future__ import annotations

import re

from isentrope.doctor.table import RULES

# Section → figures: title, what is measured, {name in the legend: key of metrics.jsonl}. Keys of evaluations are drawn
# as points, of the validation and of the test data. All keys that no figure has come under "Other figures".
# fmt: off
SECTIONS: list[tuple[str, list[tuple[str, str, dict[str, str]]]]] = [
    ("Learning", [
        ("Loss", "of training; of held-out data", {"training": "loss", "held-out": "eval/loss"}),
        ("Bits per byte", "of held-out text", {"": "eval/bits_per_byte"}),
        ("Reward", "over the completions of a step", {"mean": "reward/mean", "standard deviation": "reward/std"}),
        ("Accuracy", "share of right answers to held-out prompts",
         {"greedy": "eval/greedy", "sampled": "eval/sampled", "pass@k": "eval/pass@k"}),
        ("Policy entropy", "of the next token, nats",
         {"mean": "entropy/mean", "standard deviation": "entropy/std", "held-out samples": "eval/entropy"}),
        ("Completion length", "tokens", {"training": "length/mean", "held-out": "eval/length"}),
    ]),
    ("Attention", [
        ("Attention entropy", "entropy / log n, over all heads", {"mean": "attention/mean", "lowest": "attention/lowest"}),
        ("Heads", "share of all heads", {"collapsed": "attention/collapsed", "overloaded": "attention/overloaded"}),
    ]),
    ("Representation", [
        ("Effective rank", "of the last layer's states", {"singular values": "representation/rankme_singular", "centred": "representation/rankme_centred",
                                                         "eigenvalues": "representation/rankme_eigenvalues"}),
        ("Power law of the spectrum", "of the last layer's states", {"α": "representation/alpha", "R²": "representation/r2"}),
        ("Matrix entropy", "share of the most that it can be", {"": "representation/matrix_entropy"}),
    ]),
    ("Policy update", [
        ("KL to the behaviour policy", "nats a token", {"k1": "kl/k1", "k2": "kl/k2", "k3": "kl/k3"}),
        ("KL to the reference model", "nats a token", {"k1": "ref_kl/k1", "k2": "ref_kl/k2", "k3": "ref_kl/k3"}),
        ("Clipped and selected tokens", "share", {"clipped share": "clip/frac", "selected share": "select/frac"}),
        ("Covariance", "of log-probability and advantage, over tokens", {"mean": "cov/mean", "largest": "cov/max"}),
        ("Largest ratio", "policy / behaviour policy", {"": "ratio/max"}),
    ]),
    ("Pairs", [
        ("Margin", "of the better completion over the worse", {"margin": "pair/margin", "better": "pair/chosen", "worse": "pair/rejected"}),
        ("Pairs in order", "share whose margin is above 0", {"training": "pair/accuracy", "held-out": "eval/preference"}),
        ("Differential information", "entropy, nats", {"of a pair": "pair/information", "of held-out samples": "eval/information"}),
        ("Log-probability of a completion", "nats", {"better": "logprob/chosen", "worse": "logprob/rejected"}),
    ]),
    ("Optimisation and speed", [
        ("Gradient norm", "before clipping", {"": "grad_norm"}),
        ("Learning rate", "", {"": "lr"}),
        ("Throughput", "tokens a second", {"trained and sampled": "tokens_per_s", "sampled tokens": "rollout_tokens_per_s"}),
        ("Model FLOPs utilisation", "share of the measured product rate", {"": "mfu"}),
        ("Time in power steps", "share of a step", {"": "sigma/time_share"}),
        ("Bytes between ranks", "a step, of all ranks", {"": "ranks/bytes"}),
    ]),
]
UNSEEN = r"eval/pass@.+|time_s|law/(a|b|ceiling|r2|rmse)"  # told in words, or in figures of their own

# By title, name in a legend, column of the table, or key of metrics.jsonl; a key that ends in * stands for all that begin so.
TERMS: dict[str, str] = {
    # words of the page
    "seed": "The number from which all random draws of a run follow. Runs whose configurations differ in run.seed and run.dir alone (and in run.start, where every seed has a start of its own) are seeds of one configuration: they are drawn as one line.",
    "band": "Of seeds: from the lowest seed to the highest, drawn for the solid lines. Of a single run with more steps than a figure has room for: from the lowest to the highest of the steps that are drawn as one point.",
    "±": "Standard deviation over the seeds (n - 1); the value before it is their mean.",
    "test": "Prompts or text kept apart from training, judged at the end of each phase. In the table: after the last phase that has such an evaluation.",
    "validation": "Prompts or text kept apart from training, judged while a phase goes on.",
    "final": "The mean over the last tenth of the steps of the last phase that has the value, 50 steps at most: a single step is noisy. The loss of a policy phase is no result and left out.",
    "nats": "Entropy by the natural logarithm: 1 nat is 1.44 bits.",
    "alarm": "What the trainer warned of: a head whose attention collapsed, or lost much of its entropy in few steps.",
    "alarms": "How many different alarms the trainer gave; from the fewest to the most of the seeds. See alarm.",
    "steps": "Optimizer steps of each phase, or steps of rollouts in a policy phase.",
    "time": "Of training, over all resumptions.",
    "tokens/s": "Median over the steps of tokens trained on and sampled a second.",
    # learning
    "Loss": "What the optimizer lowers. Of text and of given completions: cross-entropy, nats a token. Of a policy: the objective, whose level says little and may be below 0. Different objectives cannot be compared by it.",
    "training": "Of the step's own data.",
    "held-out": "Of data that is not trained on; filled points: validation, ◆: test.",
    "Bits per byte": "The held-out text's information by the model, in bits, over its bytes: comparable over tokenizers.",
    "Reward": "Of the completions that a step sampled; what a policy phase raises.",
    "Accuracy": "Share of held-out prompts with a right answer.",
    "greedy": "Accuracy of the answers in which each token is the likeliest one.",
    "sampled": "Accuracy of sampled answers: the mean over all samples, which is pass@1.",
    "pass@*": "Share of prompts of which at least one of k sampled answers is right.",
    "pass@k": "Share of prompts of which at least one of k sampled answers is right, over k.",
    "Policy entropy": "Entropy of the model's distribution of the next token, at the tokens that are trained on; nats. Near 0 the policy samples the same answer again and again.",
    "Token entropy": "Entropy of the model's distribution of the next token, at the tokens that are trained on; nats.",
    "mean": "Over what the step measured.",
    "standard deviation": "Over what the step measured, not over seeds.",
    "held-out samples": "Of the answers sampled in an evaluation.",
    "Completion length": "Tokens of a completion, its end included.",
    "Reward over entropy": "Each point is a step of a policy phase. Where nothing holds the entropy up (no bonus, no selection of tokens), the law R = b - a exp(H) is fitted: reward is bought with entropy, and b - a is the ceiling at entropy 0.",
    "Lengths": "Histogram of the tokens of single completions.",
    "Rewards": "Histogram of the rewards of single completions.",
    # representation
    "Effective rank": "exp of the entropy of the normalised spectrum of the last layer's states (RankMe), in three variants, which differ by up to a factor of 35: compare like with like.",
    "singular values": "Of the states as they are.",
    "centred": "Singular values of the states less their mean.",
    "eigenvalues": "Of the covariance of the states, which are the squares of the centred singular values.",
    "Power law of the spectrum": "The i-th eigenvalue of the covariance falls like i to the power -α (α-ReQ).",
    "α": "Exponent of that law; near 1 in trained networks. Lower: more directions hold variance.",
    "R²": "Share of the variance of the logarithms of the eigenvalues that the law explains.",
    "Matrix entropy": "Entropy of the normalised eigenvalues of the states' Gram matrix.",
    # attention
    "Attention entropy of each head": "A row is a head, a column a measurement; how the colour is to be read stands below the map. See Attention entropy.",
    "Attention entropy": "Of a query with n keys in sight: entropy of its attention weights over log n. 1: all keys weigh alike; 0: one key has all. Mean over the queries of a measurement.",
    "lowest": "Of all heads.",
    "Heads": "Shares of the heads that are collapsed or overloaded.",
    "collapsed": "Share of heads whose attention entropy is below 0.05: each query sees one key. Such heads rarely recover.",
    "overloaded": "Share of heads whose entropy is in the highest quarter, measured from 0 to that of the most even head: heads that spread their attention widely. Near 100 % in many healthy runs, early above all; no alarm by itself.",
    "lowest attention": "The least attention entropy that any head had at any measurement; see Attention entropy. Below 0.05: collapsed.",
    "Lower bound of the entropy": "The bound: what the spread of a query's logits guarantees for its attention entropy; over log n.",
    "Rows certified": "A row is a query. Share of rows whose lower bound is above 0.1 log n: proved not to be collapsed.",
    # policy
    "KL to the behaviour policy": "Divergence from the behaviour policy, the one that sampled the completions, before the step's updates, to the policy now.",
    "KL to the reference model": "Divergence of the policy from the reference model, the weights at the phase's beginning.",
    "k1": "Estimator of KL: the mean of the log-ratio; unbiased, can be below 0.",
    "k2": "Estimator of KL: half the mean square of the log-ratio; biased, steady.",
    "k3": "Estimator of KL: ratio - 1 - log-ratio; unbiased, never below 0.",
    "Clipped and selected tokens": "Tokens that the loss treats unlike the others.",
    "clipped share": "Share of tokens without gradient, since their ratio left the clipping range.",
    "selected share": "Share of tokens that the method selects for special treatment (clip_cov, kl_cov).",
    "Covariance": "Product of a token's log-probability and advantage, each less its mean: tokens where it is large lower the entropy most.",
    "largest": "Of all tokens of the step.",
    "Largest ratio": "The ratio is the probability of a token by the policy over that by the behaviour policy; 1 before the first update on a batch.",
    # pairs
    "Margin": "What a phase of pairs raises: the reward of the better completion less that of the worse, each dpo_beta times the log of policy over reference.",
    "margin": "Mean over the pairs of the step; see Margin.",
    "better": "Of the better completions of the pairs.",
    "worse": "Of the worse completions of the pairs.",
    "Pairs in order": "The better completion's probability has grown more, or fallen less, than the worse one's since the reference.",
    "Differential information": "Entropy of the softmax of log policy over reference: over the two completions of a pair (ln 2 where the policy moved neither from the other), and over the answers sampled to a held-out prompt. Low: the policy moved to few of them.",
    "of a pair": "Mean over the pairs of the step; see Differential information.",
    "of held-out samples": "Mean over the prompts of an evaluation; see Differential information.",
    "Log-probability of a completion": "Sum over its tokens, mean over the step. Where both fall, the policy leaves both for what neither says.",
    # optimisation
    "Gradient norm": "Of all weights, before it is clipped to max_grad_norm.",
    "Learning rate": "As the schedule gave it.",
    "Throughput": "Tokens a second of the step.",
    "trained and sampled": "Tokens trained on and sampled, prompts included.",
    "sampled tokens": "Tokens sampled a second of the rollouts alone.",
    "Model FLOPs utilisation": "Arithmetic of the model in a step, over its time and the rate of a matrix product that the run measured at its start (MFU).",
    "Bytes between ranks": "What the processes of a run sent one another: gradients, weights, and completions of a policy.",
    "Time in power steps": "Share of a step's time that finding spectral norms took.",
    "σ": "Spectral norm of a weight: the most that it lengthens a vector. Found by power steps.",
    "γ": "The norm that sigmaReparam learns in place of σ.",
    # samples and rollouts
    "entropy": "Of the distribution that a token was sampled from (held-out text: is judged by), nats.",
    "advantage": "How much better a completion is than the others to its prompt, as the loss uses it.",
    "weight": "What methods made a token weigh in its update: the factor of its policy term (weight), or else its weight in the entropy bonus (objective.entropy). The darker, the more; point at a token for the number.",
    "advantage of a token": "Where methods under advantage give the tokens of a completion different ones; the darker, the farther from 0. Point at a token for the number.",
    "log-probability": "Of the completion's tokens when they were sampled; their sum, nats.",
    # other keys of metrics.jsonl (docs/metrics.md)
    "ref_kl/*": "KL to the reference model (k3) over the tokens of prompts of a difficulty.",
    "kl_reward/mean": "Mean divergence of a drawn token from the reference, as the reward kl measures it, nats.",
    "kl_reward/coef": "Weight of that divergence in the reward.",
    "kl_reward/penalty": "Mean of what the reward kl took from the rewards.",
    "gradient_noise_scale": "Trace of the covariance of the sequences' gradients over the square of their mean, by running means: larger batches save few steps beyond about so many sequences.",
    "gradient_noise/trace": "Estimate of the trace of the covariance of the sequences' gradients, of one update; noisy, can be below 0.",
    "gradient_noise/square": "Estimate of the square of the mean gradient, of one update; noisy, can be below 0.",
    "representation/tokens": "Tokens whose states the figures of the representation are of. A rank is below it, whatever the states.",
    "representation/time_share": "Share of the step's time that measuring the representation and the weights took. Over all steps: that, divided by metrics.representation.every.",
    "spectrum/*": "Of a weight as its layer multiplies with it: spectral_norm, the most that it lengthens a vector; stable_rank, the sum of the squares of its singular values over the largest; effective_rank, exp of the entropy of its normalised singular values.",
    "ares/threshold": "Entropy from which on a window of tokens is high, nats.",
    "ares/groups/*": "Groups of the step of a difficulty.",
    "ares/high/*": "Mean number of high-entropy windows of the completions of a difficulty.",
    "ares/target/*": "The number of high-entropy windows that a difficulty is compared with.",
    "ares/beta/*": "Weight of the divergence from the reference model, for a difficulty.",
    "ares/shaping": "Mean of what was added to the rewards.",
    "gepo/low": "Entropy of a group, nats, below which right answers learn less.",
    "gepo/high": "Entropy of a group, nats, above which wrong answers learn less.",
    "gepo/shaped": "Share of tokens whose advantage was made smaller.",
    "empg/steps": "Steps of a completion, which end with the marker; mean.",
    "hicra/planning": "Share of tokens that are part of a strategic gram.",
    "hicra/semantic_entropy": "Entropy of the shares that the strategic grams have among all that were found, nats.",
    "ceeh/hard": "Share of completions of hard prompts.",
    "ceeh/accuracy": "Mean accuracy on record, over prompts: one at most that is hard.",
    "ceeh/length": "Mean of what is added to the rewards for lengths, where a right answer has 1.",
    "pear/tagged": "Share of completions in which the thinking ends.",
    "pear/penalty": "Mean of what is taken off the rewards for hesitant thinking, where a right answer has 1.",
    "clip_b/*": "p (H + log p) of the tokens: mean, standard deviation, and the share that is taken out for lying far below the mean.",
    "clip_v/*": "p (H + log p) of the tokens less its mean under the policy: mean, standard deviation, and the share that is taken out for lying far below 0.",
    "entropy/peak": "Mean entropy of the tokens that hesitate most, which is held where it was, nats.",
    "entropy/kept": "Mean entropy of the part of the vocabulary that the entropy bonus is about, nats.",
    "generated": "Tokens sampled in the step, dropped branches included.",
    "length/ended": "Mean length of the completions that ended, tokens.",
    "length/cut": "Mean length of the completions that were cut at the length limit, tokens.",
    "reward/group_std": "Mean over prompts of the standard deviation of their completions' rewards: what there is to compare.",
    "advantage/zero": "Share of learnt tokens whose advantage is 0.",
    "entropy/positive": "Mean entropy, when they were drawn, of the tokens whose advantage is above 0, nats.",
    "entropy/negative": "Mean entropy, when they were drawn, of the tokens whose advantage is below 0, nats.",
    "inner/entropy": "Mean entropy of the inner layer's policy, while that learns in the place of the whole (objective.inner_policy), nats.",
    "weight/mean": "Mean factor of a token's policy term, where methods weigh tokens.",
    "weight/entropy": "Mean entropy of the tokens, each by its factor under weight; above the mean entropy: they choose tokens that hesitate.",
    "loss/all": "Mean cross-entropy of all targets, where methods under weight choose among them, nats a token.",
    "tea/weight": "Mean weight of a token in the entropy bonus.",
    "tea/cut": "Share of tokens whose weight in the bonus is held at its most.",
    "repo/beta": "How much of the log-probability is taken from advantages (repo).",
    "tempered/temperature": "Temperature of the second set of completions.",
    "tempered/reward": "Mean reward of the second set of completions.",
    "ares/alpha/*": "Most that ares adds to a reward or takes from it, for a difficulty.",
    "eval/accuracy": "Of a tag phase: share of the tokens of held-out texts whose likelier label is right.",
    "eval/f1": "Of a tag phase: F1 of the label kept over the tokens of held-out texts.",
    "tag/accuracy": "Share of tokens whose likelier label is right, before the update.",
    "tag/kept": "Share of tokens whose label is 1: the compression kept their word.",
    "eval/margin": "Mean of dpo_beta times the difference of log-ratios of held-out pairs.",
    "eval/probe/*": "Share of prompts that the probe calls easy, normal or hard.",
    "weight/zero": "Share of tokens whose policy term the methods under weight take away.",
    "weight/removed": "Share of tokens that the methods under weight leave out of all counts.",
    "ref_kl_coef": "Weight of the divergence from the reference model, where it is steered.",
    "entropy_coef": "Weight of the entropy bonus in the step (objective.entropy).",
    "advantage/positive": "Factor of advantages above 0, by the controller of the entropy.",
    "advantage/negative": "Factor of advantages below 0, by the controller of the entropy.",
    "mismatch/max": "Largest distance of a token's log-probability from that of the policy that drew it, before the step's first update, nats.",
    "mismatch/mean": "Mean distance of a token's log-probability from that of the policy that drew it, before the step's first update, nats.",
    "mismatch/k3": "KL of the policy that is trained from the one that drew, before the step's first update.",
    "mismatch/chi2": "Mean square of the ratio of the two policies, less 1, before the step's first update.",
    "mismatch/ess": "Effective share of the tokens under the ratio of the two policies; 1 where they are one.",
    "clip/low": "Share of tokens without gradient, since their ratio, of dppo the divergence, fell below the clipping range.",
    "clip/high": "Share of tokens without gradient, since their ratio, of dppo the divergence, rose above the clipping range.",
    "clip/dual": "Share of tokens of negative advantage that the dual clip or delta bounds; of dppo, tokens whose weight delta bounds.",
    "ratio/mean": "Mean over the tokens of policy / behaviour policy; 1 where both are alike.",
    "logprob/mean": "Mean log-probability of a trained token, nats.",
    "advantage/mean": "Mean over the tokens of the advantage; the lengths of completions move it from 0.",
    "reward/*": "Mean of one of the terms that the reward is the sum of, before its weight, over the completions that it applies to.",
    "timeouts/*": "Completions without a score by a reward, since its function was ended at its time limit.",
    "sequences": "Completions that the step trained on.",
    "tokens": "Tokens that the step trained on.",
    "qk_clip/heads": "Heads whose query and key weights the step made smaller, since a logit was above the limit.",
    "length/truncated": "Share of completions cut at the length limit.",
    "groups/flat": "Share of groups whose rewards are all equal: they teach nothing.",
    "groups/kept": "Groups that the step learns from.",
    "groups/empty_steps": "Steps in a row, this one included, that had too few groups to learn from.",
    "branch/threshold": "Entropy of a window at which sequences branch, nats.",
    "branch/kept": "Branches a prompt that went on.",
    "branch/dropped": "Branches a prompt that ended after their trial.",
    "samples/std": "Standard deviation of the number of samples a prompt.",
    "cache/preempted": "How often a sequence gave its pages of the cache up.",
    "eval/sampled/*": "Sampled accuracy of prompts of one size.",
    "eval/unscored": "Share of the answers that the first reward does not apply to; they count as not right.",
    "eval/length/*": "Completion length of prompts of one size, in evaluations.",
}
# fmt: on
TERMS |= {rule.name: f"A finding (isentrope doctor): {rule.condition}. {rule.source}." for rule in RULES}


def term(name: str) -> str | None:
    """The key of TERMS that explains a word of the page."""
    if name in TERMS:
        return name
    bare = re.sub(r"^(test|validation|final) ", "", name)
    if bare != name:
        return term(bare) or term(bare.capitalize())
    patterns = [key for key in TERMS if key.endswith("*") and name.startswith(key[:-1])]
    return max(patterns, key=len, default=None)


def anchor(key: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", key.lower().replace("*", "x").replace("±", "pm")).strip("-") + (
        f"-{ord(key[0]):x}" if not key[0].isascii() else ""
    )
