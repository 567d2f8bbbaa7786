#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>

#include <cmath>
#include <limits>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

constexpr const char* kOp = "gathered_attention";

// index [B, H, C, w] of positions below length, -1 for none. Values are looked at on the CPU alone.
void check_index(const char* op, const char* name, const Tensor& index, const c10::SymInt& B, const c10::SymInt& H,
                 const c10::SymInt& length) {
  check_dtype(op, name, index, {at::kInt, at::kLong});
  OP_CHECK(op, index.dim() == 4 && index.sym_size(0) == B && index.sym_size(1) == H, name, " has shape ",
           index.sym_sizes(), "; wanted [", B, ", ", H, ", clusters, positions of each]");
  if (!index.is_cpu() || at::isTensorSubclassLike(index) || index.numel() == 0) return;
  const int64_t least = index.min().item<int64_t>(), most = index.max().item<int64_t>();
  OP_CHECK(op, least >= -1 && most < length, name, " holds ", least < -1 ? least : most, "; wanted 0 to ", length - 1,
           ", or -1 for none");
}

// Rows of x [B, G, S, D], all in one list, that index [B, H, …] names; H is a multiple of G. -1: the first of all.
Tensor rows_of(const Tensor& index, const c10::SymInt& G, const c10::SymInt& S) {
  const c10::SymInt B = index.sym_size(0), H = index.sym_size(1);
  const auto options = index.options().dtype(at::kLong);
  const Tensor head = at::arange(B * H, options).div(H / G, "floor").mul(S).view_symint({B, H, 1, 1});
  return at::where(index.ge(0), index + head, 0);
}

// [B·H·C, 1, w, D]. As of an embedding, whose gradient is a sum in one order.
Tensor gather(const Tensor& x, const Tensor& index) {
  const Tensor rows = rows_of(index, x.sym_size(1), x.sym_size(2));
  return at::embedding(x.flatten(0, 2), rows.flatten(0, 2)).unsqueeze(1);
}

}  // namespace

EntropyAttention gathered_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                    const GatheredAttentionOptions& options) {
  for (const auto& [name, x] : {std::pair("q", q), std::pair("k", k), std::pair("v", v), std::pair("index", index)})
    TORCH_CHECK_TYPE(x.defined(), "isentrope::", kOp, ": ", name, " is None; wanted a tensor");
  for (const auto& [name, x] : {std::pair("q", q), std::pair("k", k), std::pair("v", v)})
    OP_CHECK(kOp, x.dim() == 4, name, " has ", x.dim(), " dimensions; wanted ",
             x.is_same(q) ? "[B, H, T, D]" : "[B, G, S, D]");
  const c10::SymInt B = q.sym_size(0), H = q.sym_size(1), G = k.sym_size(1), S = k.sym_size(2), D = q.sym_size(3);
  OP_CHECK(kOp, G >= 1 && H % G == 0, "q has ", H, " heads and k has ", G, "; wanted a multiple of k's");
  OP_CHECK(kOp, k.sym_size(0) == B, "k has ", k.sym_size(0), " batches; wanted ", B, " as q has");
  check_shape(kOp, "v", v, k.sym_sizes(), "as k");
  const Tensor& key_index = options.key_index ? *options.key_index : index;
  check_index(kOp, "index", index, B, H, q.sym_size(2));
  check_index(kOp, options.key_index ? "key_index" : "index", key_index, B, H, S);
  const c10::SymInt C = index.sym_size(2), w = index.sym_size(3), m = key_index.sym_size(3);
  OP_CHECK(kOp, key_index.sym_size(2) == C, "key_index has ", key_index.sym_size(2), " clusters; wanted ", C,
           " as index has");

  // Queries and keys of a cluster in the order of their positions, queries that are none first, keys that are none last.
  const auto [positions, order] = index.to(at::kLong).sort(-1);
  const Tensor none = key_index.lt(0);
  const Tensor keys =
      std::get<0>(key_index.to(at::kLong).masked_fill(none, std::numeric_limits<int64_t>::max()).sort(-1));
  // What a query sees last: by position, whatever the two lists hold.
  const Tensor places = options.causal ? at::searchsorted(keys, positions, /*out_int32=*/false, /*right=*/true) - 1
                                       : at::where(positions.ge(0), m, -1);
  EntropyAttentionOptions attention;
  attention.softcap = options.softcap;
  attention.scale = options.scale;
  attention.return_entropy = options.return_entropy;
  attention.key_lengths = none.logical_not().sum(-1).flatten();
  attention.query_start = at::minimum(places, attention.key_lengths->view_symint({B, H, C, 1})).flatten(0, 2);
  const Tensor there = at::where(keys.eq(std::numeric_limits<int64_t>::max()), -1, keys);
  auto [out, lse, entropy, max_logit] =
      entropy_attention(gather(q, positions), gather(k, there), gather(v, there), attention);

  // Back into the order of index.
  const Tensor place = order.argsort(int64_t{-1});
  const auto statistic = [&](const Tensor& x) {
    return x.defined() ? x.view_symint({B, H, C, w}).gather(-1, place) : x;
  };
  const Tensor first = at::arange(B * H * C, place.options()).mul(w).view_symint({B, H, C, 1});
  return {at::embedding(out.reshape_symint({B * H * C * w, D}), place + first), statistic(lse), statistic(entropy),
          statistic(max_logit)};
}

Tensor scatter_mean(const Tensor& x, const Tensor& index, const c10::SymInt& length) {
  constexpr const char* op = "scatter_mean";
  OP_CHECK(op, index.dim() == 4, "index has ", index.dim(), " dimensions; wanted [B, H, clusters, positions of each]");
  const bool rows = x.dim() == 5;
  OP_CHECK(op, (rows || x.dim() == 4) && x.sym_sizes().slice(0, 4) == index.sym_sizes(), "x has shape ", x.sym_sizes(),
           "; wanted that of index, ", index.sym_sizes(), ", or one dimension more");
  check_dtype(op, "x", x, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  OP_CHECK(op, length >= 0, "length is ", length, "; wanted at least 0");
  const c10::SymInt B = index.sym_size(0), H = index.sym_size(1), D = rows ? x.sym_size(4) : 1, all = B * H * length;
  check_index(op, "index", index, B, H, length);
  const Tensor to = at::where(index.ge(0), rows_of(index, H, length), all).flatten();  // one row more, for none
  const Tensor wide = x.to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).reshape_symint({-1, D});
  const Tensor sum = at::embedding_dense_backward_symint(wide, to, all + 1, /*padding_idx=*/all, false);
  const Tensor count = at::scatter_add(at::zeros_symint({all + 1}, wide.options()), 0, to,
                                       at::ones_symint({to.sym_size(0)}, wide.options()));
  const Tensor mean = (sum / count.clamp_min(1).unsqueeze(-1)).narrow_symint(0, 0, all).to(x.scalar_type());
  return rows ? mean.view_symint({B, H, length, D}) : mean.view_symint({B, H, length});
}

// ---- what the dispatcher calls ---------------------------------------------------------------------------------------

AttentionStates gathered_attention_composite(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                             const OptionalTensor& key_index, bool causal,
                                             std::optional<double> softcap, std::optional<double> scale,
                                             bool return_entropy) {
  const auto [out, lse, entropy, max_logit] =
      gathered_attention(q, k, v, index, {key_index, causal, softcap, scale, return_entropy});
  return {out, lse, return_entropy ? entropy : at::empty({0}, lse.options()), max_logit};
}

AttentionStates gathered_attention_autocast(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                            const OptionalTensor& key_index, bool causal, std::optional<double> softcap,
                                            std::optional<double> scale, bool return_entropy) {
  const Autocast cast(q);
  return gathered_attention_composite(cast.lower(q), cast.lower(k), cast.lower(v), index, key_index, causal, softcap,
                                      scale, return_entropy);
}

Tensor scatter_mean_composite(const Tensor& x, const Tensor& index, c10::SymInt length) {
  return scatter_mean(x, index, length);
}

}  // namespace isentrope::ops
