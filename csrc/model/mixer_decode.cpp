#include "csrc/model/mixer_decode.h"

namespace isentrope::model {

Tensor plain_product(const Tensor& x, const Projection& p) {
  return p.bias.defined() ? at::linear(x, p.weight, p.bias) : at::linear(x, p.weight);
}

template <class Storage>
Tensor Packer<Storage>::stored(const Tensor& x) const {
  return x.to(std::is_same_v<Storage, float> ? at::kFloat : at::kBFloat16, false, /*copy=*/true).contiguous();
}

template <class Storage>
PackedWeight Packer<Storage>::weight(const Projection& projection) const {
  PackedWeight made = weight(folded(projection));
  made.bias = copy(projection.bias);
  return made;
}

template <class Storage>
PackedWeight Packer<Storage>::weight(const Tensor& matrix) const {
  const Tensor plain = matrix.detach().contiguous();
  const int64_t N = plain.size(0), K = plain.size(1);
  if (pairs) {
    const Tensor bits = plain.to(at::kBFloat16);
    return {
        N, K, {}, std::make_shared<const Bfloat16Weight>(N, K, static_cast<const uint16_t*>(bits.const_data_ptr()))};
  }
  Tensor out = at::empty({packed_size(K, N, kernels.panel)}, plain.options());
  kernels.pack(K, N, plain.data_ptr<float>(), 1, K, nullptr, nullptr, out.data_ptr<float>());
  return {N, K, std::is_same_v<Storage, float> ? out : stored(out)};
}

template <class Storage>
void DecodeScratch<Storage>::multiply(int64_t n, const float* x, const PackedWeight& weight, float* out, bool add) {
  const int64_t N = weight.rows, K = weight.columns;
  if (weight.pairs)
    weight.pairs->multiply(n, x, out, add, operands_, staging_);
  else
    decode.packed_product(n, N, K, x, K, static_cast<const Storage*>(weight.panels.const_data_ptr()), out, N, add);
  if (!weight.bias.defined()) return;
  const float* bias = weight.bias.const_data_ptr<float>();
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < N; ++k) out[i * N + k] += bias[k];
}

template class Packer<float>;
template class Packer<uint16_t>;
template class DecodeScratch<float>;
template class DecodeScratch<uint16_t>;

}  // namespace isentrope::model
