#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/ops.h"

// Softmax attention tied in blocks by a tree over the tokens. With s_ij = scale · q_i·k_j, and for siblings A and C, subtrees of |A| and
// |C| tokens, s_AC the mean of s_ij over i in A and j in C, plus ε(A)·ε(C):
//
//     upwards    log Z_A = log(e^f(A) + Σ_C |C| e^s_AC) over the siblings C of A     f(parent) = Σ_A |A| / |parent| · log Z_A
//                f(token i) = s_ii + ε(i)·ε(i)
//     downwards  a row of A gives C the share P_AC = |C| e^s_AC / Z_A of what reached its parent, each token of C alike, and keeps
//                P_AA = e^f(A) / Z_A for what is below A
//
// Those are the weights θ that are constant on A × C, of rows that sum to 1, nearest to the softmax by Σ_i KL(θ_i ‖ softmax_i). The
// means of s are products of means of q and k, so that nothing grows faster than the tokens times the size of a family.
namespace isentrope::ops {
namespace {

constexpr const char* kOp = "hierarchical_attention";

// The families of one level: N nodes below, F families of up to m.
struct Level {
  Tensor children;  // [B or 1, F, m] int64, nodes below, -1 for none; undefined: runs of m
  c10::SymInt N, F, m;
};

// Where each element of index [B or 1, F, m] stands in x [B · H · N, …], for every batch and head; -1: the first.
Tensor rows_of(const Tensor& index, const c10::SymInt& B, const c10::SymInt& H, const c10::SymInt& N) {
  const Tensor first = at::arange(B * H, index.options()).mul(N).view_symint({B, H, 1, 1});
  return at::where(index.ge(0).unsqueeze(1), index.unsqueeze(1) + first, 0);  // [B, H, F, m]
}

// x [B, H, N, D] → [B, H, F, m, D], 0 where there is none.
Tensor gather(const Level& level, const Tensor& x) {
  if (!level.children.defined()) {
    const c10::SymInt more = level.F * level.m - level.N;
    const Tensor whole = more == 0 ? x : at::constant_pad_nd_symint(x, {0, 0, 0, more});
    return whole.unflatten_symint(2, {level.F, level.m});
  }
  const Tensor rows = rows_of(level.children, x.sym_size(0), x.sym_size(1), level.N);
  // As of an embedding, whose gradient is a sum in one order.
  return at::embedding(x.flatten(0, 2), rows).masked_fill(level.children.lt(0).unsqueeze(1).unsqueeze(-1), 0);
}

// The way back: y [B, H, F, m, D] → [B, H, N, D], 0 at nodes of no family.
Tensor spread(const Level& level, const Tensor& y) {
  const Tensor slots = y.flatten(2, 3);  // [B, H, F · m, D]
  if (!level.children.defined()) return slots.narrow_symint(2, 0, level.N);
  const Tensor children = level.children.flatten(1), none = children.lt(0);
  // Slots that hold nothing write behind the last node.
  const Tensor slot = at::arange(children.sym_size(1), children.options()).expand_as(children);
  const Tensor place = at::full_symint({children.sym_size(0), level.N + 1}, -1, children.options())
                           .scatter(1, children.masked_fill(none, level.N), slot)
                           .narrow_symint(1, 0, level.N)
                           .unsqueeze(1);  // [B or 1, 1, N]
  const Tensor rows = rows_of(place, y.sym_size(0), y.sym_size(1), slots.sym_size(2)).squeeze(2);
  return at::embedding(slots.flatten(0, 2), rows).masked_fill(place.lt(0).unsqueeze(-1), 0);
}

// Of a number a node, x [B, H, N].
Tensor gather_numbers(const Level& level, const Tensor& x) { return gather(level, x.unsqueeze(-1)).squeeze(-1); }

// Numbers of nodes, each at most once. Looked at on the CPU alone.
void check_children(const Tensor& children, size_t l, const c10::SymInt& N) {
  if (!children.is_cpu() || at::isTensorSubclassLike(children) || children.numel() == 0) return;
  const int64_t nodes = N.guard_int(__FILE__, __LINE__);
  const int64_t least = children.min().item<int64_t>(), most = children.max().item<int64_t>();
  OP_CHECK(kOp, least >= -1 && most < nodes, "tree[", l, "] holds ", least < -1 ? least : most, "; wanted 0 to ",
           nodes - 1, ", or -1 for none");
  const Tensor row = children.flatten(1),
               times = at::zeros({row.size(0), nodes + 1}, row.options())
                           .scatter_add(1, row.masked_fill(row.lt(0), nodes), at::ones_like(row))
                           .narrow(1, 0, nodes);
  const Tensor twice = times.gt(1).nonzero();
  OP_CHECK(kOp, twice.size(0) == 0, "tree[", l, "] holds ", twice[0][1].item<int64_t>(),
           " more than once; wanted each node in one family");
}

std::vector<Level> levels_of(const Tensor& q, const HierarchicalAttentionOptions& options) {
  const c10::SymInt B = q.sym_size(0);
  c10::SymInt N = q.sym_size(2);
  std::vector<Level> levels;
  OP_CHECK(kOp, options.branching.has_value() != options.tree.has_value(), "branching is ",
           options.branching ? "given" : "None", " and tree is ", options.tree ? "given" : "None",
           "; wanted one of the two");
  if (options.branching) {
    const c10::SymInt branching = *options.branching;
    OP_CHECK(kOp, branching >= 2, "branching is ", branching, "; wanted at least 2");
    do {
      const c10::SymInt m = N > 0 && N < branching ? N : branching, F = (N + m - 1) / m;
      levels.push_back({{}, N, F, m});
      N = F;
    } while (N > 1);
    return levels;
  }
  OP_CHECK(kOp, !options.tree->empty(), "tree is empty; wanted the families of each level, from the tokens up");
  for (size_t l = 0; l < options.tree->size(); ++l) {
    const std::string name = "tree[" + std::to_string(l) + "]";
    const Tensor& given = (*options.tree)[l];
    check_dtype(kOp, name.c_str(), given, {at::kInt, at::kLong});
    check_device(kOp, name.c_str(), given, "q", q);
    OP_CHECK(kOp, given.dim() == 2 || (given.dim() == 3 && given.sym_size(0) == B), name, " has shape ",
             given.sym_sizes(), "; wanted [families, nodes of each], or [", B, ", families, nodes of each]");
    const Tensor children = given.dim() == 2 ? given.unsqueeze(0) : given;
    check_children(children, l, N);
    const c10::SymInt F = children.sym_size(1);
    levels.push_back({children.to(at::kLong), N, F, children.sym_size(2)});
    N = F;
  }
  return levels;
}

// [B or 1, 1, T] bool: the tokens that are no padding; undefined where all are.
Tensor real_of(const Tensor& q, const HierarchicalAttentionOptions& options) {
  const c10::SymInt B = q.sym_size(0), T = q.sym_size(2);
  Tensor real;
  if (options.key_lengths) {
    const Tensor& lengths = *options.key_lengths;
    check_dtype(kOp, "key_lengths", lengths, {at::kInt, at::kLong});
    check_shape(kOp, "key_lengths", lengths, {B}, "one a sequence");
    check_device(kOp, "key_lengths", lengths, "q", q);
    real = at::arange(T, lengths.options()).lt(lengths.unsqueeze(-1));
  }
  if (options.mask) {
    check_dtype(kOp, "mask", *options.mask, {at::kBool});
    check_shape(kOp, "mask", *options.mask, {B, T}, "tokens of each sequence");
    check_device(kOp, "mask", *options.mask, "q", q);
    real = real.defined() ? real.logical_and(*options.mask) : *options.mask;
  }
  return real.defined() ? real.unsqueeze(1) : real;
}

// ε·ε of level l: [1 or H, 1, m, m].
Tensor sibling_products(const Tensor& position, size_t l, const Level& level) {
  const Tensor of_level = position.dim() == 4 ? position.select(0, static_cast<int64_t>(l)) : position;
  const Tensor features = (of_level.dim() == 2 ? of_level.unsqueeze(0) : of_level).narrow_symint(1, 0, level.m);
  return at::matmul(features, features.mT()).unsqueeze(1);
}

void check_position(const Tensor& position, const Tensor& q, const std::vector<Level>& levels) {
  check_dtype(kOp, "position", position, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_device(kOp, "position", position, "q", q);
  const int64_t dims = position.dim();
  const c10::SymInt H = q.sym_size(1), depth = static_cast<int64_t>(levels.size());
  OP_CHECK(kOp,
           dims == 2 || (dims == 3 && position.sym_size(0) == H) ||
               (dims == 4 && position.sym_size(1) == H && position.sym_size(0) >= depth),
           "position has shape ", position.sym_sizes(), "; wanted [siblings, features], [", H,
           ", siblings, features] or [", depth, " levels, ", H, ", siblings, features]");
  for (const Level& level : levels)
    OP_CHECK(kOp, position.sym_size(dims - 2) >= level.m, "position is of ", position.sym_size(dims - 2),
             " siblings; wanted at least ", level.m, ", as many as a family has");
}

// What a level leaves for the way down.
struct Step {
  Tensor share;    // [B, H, F, m, m]: P
  Tensor entropy;  // [B, H, F, m] nats, of a token's choice at this level; undefined without return_entropy
  Tensor values;   // [B, G, F, m, D]: means
};

}  // namespace

HierarchicalAttention hierarchical_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const HierarchicalAttentionOptions& options) {
  for (const auto& [name, x] : {std::pair("q", q), std::pair("k", k), std::pair("v", v)}) {
    TORCH_CHECK_TYPE(x.defined(), "isentrope::", kOp, ": ", name, " is None; wanted a tensor");
    OP_CHECK(kOp, x.dim() == 4, name, " has ", x.dim(), " dimensions; wanted ",
             x.is_same(q) ? "[B, H, T, D]" : "[B, G, T, D]");
    check_dtype(kOp, name, x, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
    TORCH_CHECK_TYPE(x.scalar_type() == q.scalar_type(), "isentrope::", kOp, ": ", name, " has dtype ", x.scalar_type(),
                     "; wanted ", q.scalar_type(), " as q has");
    check_device(kOp, name, x, "q", q);
  }
  const c10::SymInt B = q.sym_size(0), H = q.sym_size(1), G = k.sym_size(1), T = q.sym_size(2), D = q.sym_size(3);
  OP_CHECK(kOp, G >= 1 && H % G == 0, "q has ", H, " heads and k has ", G, "; wanted a multiple of k's");
  OP_CHECK(kOp, D >= 1, "q has heads of size 0; wanted at least 1");
  check_shape(kOp, "k", k, {B, G, T, D}, "as q, of its own heads");
  check_shape(kOp, "v", v, k.sym_sizes(), "as k");
  OP_CHECK(kOp, !options.scale || std::isfinite(*options.scale), "scale is ", *options.scale,
           "; wanted a finite number");
  const std::vector<Level> levels = levels_of(q, options);
  if (options.position) check_position(*options.position, q, levels);
  const Tensor real = real_of(q, options);
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto scale =
      options.scale ? at::Scalar(*options.scale) : at::Scalar(1 / std::sqrt(D.guard_int(__FILE__, __LINE__)));
  // Heads of keys as often as queries read them.
  const auto to_heads = [&](const Tensor& x) { return H == G ? x : at::repeat_interleave_symint(x, H / G, 1); };

  // Padding is not read, NaN in it or not.
  const auto start = [&](const Tensor& x) {
    return real.defined() ? x.to(wide).masked_fill(real.logical_not().unsqueeze(-1), 0) : x.to(wide);
  };
  Tensor queries = start(q), keys = start(k), values = start(v), self;
  Tensor count = real.defined() ? real.to(wide) : at::ones_symint({1, 1, T}, q.options().dtype(wide));
  std::vector<Step> steps;
  for (size_t l = 0; l < levels.size(); ++l) {
    const Level& level = levels[l];
    const bool top = l + 1 == levels.size();
    const Tensor of_queries = gather(level, queries), of_keys = gather(level, keys), of_values = gather(level, values);
    const Tensor size = gather_numbers(level, count);  // [B or 1, 1, F, m]
    Tensor mean_logits = at::matmul(of_queries, to_heads(of_keys).mT()).mul(scale);
    if (options.position) mean_logits = mean_logits + sibling_products(options.position->to(wide), l, level);
    const Tensor log_size = size.log().unsqueeze(-2);  // -inf: nothing is there to be seen
    const Tensor own = at::eye_symint(level.m, size.options().dtype(at::kBool));
    // A token's own is what its family says of it; 0 of one that is not there, whose row is of no meaning.
    const Tensor kept = l == 0 ? mean_logits : gather_numbers(level, self).unsqueeze(-1);
    const Tensor logits = at::where(own, kept, mean_logits + log_size);
    const Tensor log_total = logits.logsumexp(-1);  // [B, H, F, m]
    const Tensor log_share = logits - log_total.unsqueeze(-1), share = log_share.exp();
    Tensor entropy;
    if (options.return_entropy) {
      // Of the choice among siblings, and of the choice of a token in the sibling, where all are alike.
      const Tensor within = at::where(own, 0, log_size), none = within.eq(-std::numeric_limits<double>::infinity());
      entropy = (share * (within - log_share).masked_fill(none, 0)).sum(-1);
    }
    steps.push_back({share, entropy, of_values});
    const Tensor sum = size.sum(-1),
                 part = (size / sum.clamp_min(1).unsqueeze(-1)).unsqueeze(-2);  // [B or 1, 1, F, 1, m]
    self = (part.squeeze(-2) * log_total).sum(-1);
    count = sum;
    if (top) break;
    queries = at::matmul(part, of_queries).squeeze(-2);
    keys = at::matmul(part, of_keys).squeeze(-2);
    values = at::matmul(part, of_values).squeeze(-2);
  }

  const c10::SymInt roots = levels.back().F;
  Tensor mass, out, entropy;  // of what reached each family: undefined for 1, 0 and 0
  for (size_t l = levels.size(); l-- > 0;) {
    const Level& level = levels[l];
    const Step& step = steps[l];
    const Tensor share = mass.defined() ? step.share * mass.unsqueeze(-1).unsqueeze(-1) : step.share;
    const Tensor taken =
        l == 0 ? share : share.masked_fill(at::eye_symint(level.m, share.options().dtype(at::kBool)), 0);
    Tensor below = at::matmul(taken, to_heads(step.values));  // [B, H, F, m, D]
    if (out.defined()) below = below + out.unsqueeze(-2);
    out = spread(level, below);
    if (options.return_entropy) {
      Tensor chosen = mass.defined() ? step.entropy * mass.unsqueeze(-1) + entropy.unsqueeze(-1) : step.entropy;
      entropy = spread(level, chosen.unsqueeze(-1)).squeeze(-1);
    }
    if (l > 0) mass = spread(level, share.diagonal(0, -2, -1).unsqueeze(-1)).squeeze(-1);
  }
  if (real.defined()) {
    const Tensor padding = real.logical_not();
    out = out.masked_fill(padding.unsqueeze(-1), 0);
    if (options.return_entropy) entropy = entropy.masked_fill(padding, 0);
  }
  return {out.to(q.scalar_type()), entropy, self.expand_symint({B, H, roots})};
}

// ---- what the dispatcher calls ---------------------------------------------------------------------------------------

HierarchicalAttentionOutputs hierarchical_attention_composite(
    const Tensor& q, const Tensor& k, const Tensor& v, std::optional<int64_t> branching,
    std::optional<std::vector<Tensor>> tree, const OptionalTensor& key_lengths, const OptionalTensor& mask,
    const OptionalTensor& position, std::optional<double> scale, bool return_entropy) {
  const auto [out, entropy, log_partition] =
      hierarchical_attention(q, k, v, {branching, std::move(tree), key_lengths, mask, position, scale, return_entropy});
  return {out, return_entropy ? entropy : at::empty({0}, log_partition.options()), log_partition};
}

HierarchicalAttentionOutputs hierarchical_attention_autocast(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             std::optional<int64_t> branching,
                                                             std::optional<std::vector<Tensor>> tree,
                                                             const OptionalTensor& key_lengths,
                                                             const OptionalTensor& mask, const OptionalTensor& position,
                                                             std::optional<double> scale, bool return_entropy) {
  const Autocast cast(q);
  return hierarchical_attention_composite(cast.lower(q), cast.lower(k), cast.lower(v), branching, std::move(tree),
                                          key_lengths, mask, position, scale, return_entropy);
}

}  // namespace isentrope::ops
