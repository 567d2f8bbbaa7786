// Times the kernels on a GPU: bytes moved, bandwidth, and the bandwidth of a plain copy beside it in the same run.
//
//   kernel_benchmark [FILE]     prints a table; writes FILE as JSON
//
// Each case is checked against a double-precision loop on a few rows before it is timed (the kernel tests judge
// accuracy; here a gross error must not be timed). Times are medians over rounds in which all of the device's cache is
// overwritten before each run. "bytes" counts what must be moved once: inputs read and outputs written. Attention also has
// its "flop", two for each multiply-add of the products over visible pairs (2 forward, 5 backward).
// Exit code: 0; 1 where a check fails; 3 where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/entropy_attention.h"
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/philox.h"
#include "kernels/grpo_loss.h"
#include "kernels/token_entropy.h"

namespace isentrope {
namespace {

using kernels::DType;

constexpr size_t kFlushBytes = size_t{256} << 20;  // above the second-level cache of any GPU so far
constexpr int kRounds = 30;

// bytes of device memory.
class Memory {
 public:
  explicit Memory(size_t bytes) { GPU_CHECK(cudaMalloc(&p_, bytes)); }
  ~Memory() { cudaFree(p_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(p_);
  }
  operator void*() const { return p_; }
  template <class T>
  std::vector<T> read(size_t offset, size_t count) const {
    std::vector<T> values(count);
    GPU_CHECK(cudaMemcpy(values.data(), as<T>() + offset, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* p_ = nullptr;
};

// out [count]: low + (high - low) u with u uniform, by Philox.
template <class T>
__global__ void fill_kernel(T* out, int64_t count, uint64_t key, float low, float high) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) {
    const float u = static_cast<float>(philox(key, static_cast<uint64_t>(i), 0).word[0]) * 0x1p-32f;
    if constexpr (std::is_integral<T>::value)
      out[i] = static_cast<T>(low + (high - low) * u);
    else
      out[i] = gpu::narrow<T>(low + (high - low) * u);
  }
}
template <class T>
void fill(T* out, int64_t count, uint64_t key, float low, float high) {
  gpu::launch(fill_kernel<T>, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0, nullptr, out, count, key,
              low, high);
}

struct Row {
  std::string op, shape, dtype;
  double bytes, flop, median_ms, best_ms, share_of_copy;
};

class Benchmark {
 public:
  Benchmark() : flush_(kFlushBytes) {
    GPU_CHECK(cudaEventCreate(&start_));
    GPU_CHECK(cudaEventCreate(&stop_));
    Memory from(kFlushBytes), to(kFlushBytes);
    GPU_CHECK(cudaMemset(from, 0, kFlushBytes));
    add("copy", "256 MiB", "-", 2.0 * kFlushBytes,
        [&] { GPU_CHECK(cudaMemcpyAsync(to, from, kFlushBytes, cudaMemcpyDeviceToDevice, nullptr)); });
  }
  ~Benchmark() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  void add(const std::string& op, const std::string& shape, const std::string& dtype, double bytes,
           const std::function<void()>& run, double flop = 0) {
    std::vector<float> ms(kRounds);
    for (int round = -3; round < kRounds; ++round) {  // three to warm up
      GPU_CHECK(cudaMemsetAsync(flush_, round, kFlushBytes, nullptr));
      GPU_CHECK(cudaEventRecord(start_, nullptr));
      run();
      GPU_CHECK(cudaEventRecord(stop_, nullptr));
      GPU_CHECK(cudaEventSynchronize(stop_));
      if (round >= 0) GPU_CHECK(cudaEventElapsedTime(&ms[round], start_, stop_));
    }
    std::sort(ms.begin(), ms.end());
    Row row{op, shape, dtype, bytes, flop, ms[kRounds / 2], ms[0], 1};
    if (rows_.empty()) copy_rate_ = row.bytes / row.median_ms;
    row.share_of_copy = row.bytes / row.median_ms / copy_rate_;
    rows_.push_back(row);
    std::printf("%-36s %-22s %-9s %9.1f MB %9.4f ms %8.1f GB/s  %5.1f %% of copy", op.c_str(), shape.c_str(),
                dtype.c_str(), bytes / 1e6, row.median_ms, bytes / row.median_ms / 1e6, 100 * row.share_of_copy);
    if (flop > 0) std::printf("  %8.2f TFLOP/s", flop / row.median_ms / 1e9);
    std::printf("\n");
    std::fflush(stdout);
  }

  void expect(bool good, const std::string& what, double actual, double expected) {
    if (good) return;
    std::printf("WRONG: %s is %.9g, expected %.9g\n", what.c_str(), actual, expected);
    failed_ = true;
  }
  bool failed() const { return failed_; }

  void write(const char* path, const cudaDeviceProp& device) const {
    std::FILE* file = std::fopen(path, "w");
    if (!file) throw std::runtime_error(std::string("kernel_benchmark: cannot write ") + path);
    std::fprintf(file, "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"checked\": %s, \"rows\": [",
                 device.name, device.major, device.minor, failed_ ? "false" : "true");
    const char* separator = "\n";
    for (const Row& r : rows_) {
      std::fprintf(file,
                   "%s {\"op\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"bytes\": %.0f, \"flop\": %.0f, "
                   "\"median_ms\": %.6f, "
                   "\"best_ms\": %.6f, \"gb_per_s\": %.3f, \"share_of_copy\": %.4f}",
                   separator, r.op.c_str(), r.shape.c_str(), r.dtype.c_str(), r.bytes, r.flop, r.median_ms, r.best_ms,
                   r.bytes / r.median_ms / 1e6, r.share_of_copy);
      separator = ",\n";
    }
    std::fprintf(file, "\n]}\n");
    if (std::fclose(file) != 0) throw std::runtime_error(std::string("kernel_benchmark: cannot write ") + path);
  }

 private:
  Memory flush_;
  cudaEvent_t start_, stop_;
  std::vector<Row> rows_;
  double copy_rate_ = 1;
  bool failed_ = false;
};

std::string shape_of(int64_t rows, int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

// ---- token_entropy ---------------------------------------------------------------------------------------------------

// Row n of logits against the formulas of kernels/token_entropy.h, and of dlogits where it is given.
template <class T>
void check_row(Benchmark& benchmark, int64_t n, int64_t vocab, const Memory& logits, const Memory& target,
               const Memory& logprob, const Memory& entropy, const Memory* dlogits) {
  const auto z = logits.read<T>(n * vocab, vocab);
  const int64_t y = target.read<int64_t>(n, 1)[0];
  double sum = 0, weighted = 0;  // logits lie in [-8, 8): no maximum is needed
  for (const T v : z) sum += std::exp(static_cast<double>(gpu::widen(v)));
  const double lse = std::log(sum);
  for (const T v : z) weighted += std::exp(gpu::widen(v) - lse) * (gpu::widen(v) - lse);
  const double exact[] = {gpu::widen(z[y]) - lse, -weighted};
  const double got[] = {logprob.read<float>(n, 1)[0], entropy.read<float>(n, 1)[0]};
  for (int k = 0; k < 2; ++k)
    benchmark.expect(std::fabs(got[k] - exact[k]) < 1e-4, k ? "entropy" : "logprob", got[k], exact[k]);
  if (!dlogits) return;
  const auto dz = dlogits->read<T>(n * vocab, vocab);
  for (int64_t v = 0; v < vocab; ++v) {
    const double log_p = gpu::widen(z[v]) - lse, p = std::exp(log_p);
    const double expected = (v == y ? 1 - p : -p) - p * (log_p + exact[1]), actual = gpu::widen(dz[v]);
    if (std::fabs(actual - expected) > 0x1p-7 * std::fabs(expected) + 1e-6) {
      benchmark.expect(false, "dlogits[" + std::to_string(v) + "]", actual, expected);
      break;
    }
  }
}

template <DType kType>
void token_entropy(Benchmark& benchmark, int64_t rows, int64_t vocab) {
  using T = gpu::TypeOf<kType>;
  const int64_t count = rows * vocab;
  const double matrix = static_cast<double>(count) * sizeof(T), row_bytes = static_cast<double>(rows) * sizeof(float);
  Memory logits(count * sizeof(T)), dlogits(count * sizeof(T)), target(rows * sizeof(int64_t)),
      ones(rows * sizeof(float));
  Memory logprob(rows * 4), entropy(rows * 4), lse(rows * 4), anchor(rows * 4), log_sum(rows * 4);
  fill(logits.as<T>(), count, 1, -8, 8);
  fill(target.as<int64_t>(), rows, 2, 0, static_cast<float>(vocab - 1));
  fill(ones.as<float>(), rows, 3, 1, 1);

  kernels::TokenEntropyForward forward;
  forward.dtype = kType;
  forward.layout = {rows, vocab, rows, 0, vocab};
  forward.logits = logits;
  forward.target = target.as<int64_t>();
  forward.logprob = logprob;
  forward.entropy = entropy;
  forward.lse = lse;
  forward.anchor = anchor;
  forward.log_sum = log_sum;
  kernels::TokenEntropyBackward backward;
  backward.dtype = kType;
  backward.layout = backward.dlogits_layout = forward.layout;
  backward.logits = logits;
  backward.target = forward.target;
  backward.entropy = entropy;
  backward.anchor = anchor;
  backward.log_sum = log_sum;
  backward.dlogprob = backward.dentropy = ones;
  backward.dlogits = dlogits;

  kernels::token_entropy_forward_cuda(forward, nullptr);
  kernels::token_entropy_backward_cuda(backward, nullptr);
  for (const int64_t n : {int64_t{0}, rows / 2, rows - 1})
    check_row<T>(benchmark, n, vocab, logits, target, logprob, entropy, &dlogits);
  const std::string shape = shape_of(rows, vocab), dtype = name_of(kType);
  benchmark.add("token_entropy forward", shape, dtype, matrix + 7 * row_bytes,
                [&] { kernels::token_entropy_forward_cuda(forward, nullptr); });
  benchmark.add("token_entropy backward", shape, dtype, 2 * matrix + 7 * row_bytes,
                [&] { kernels::token_entropy_backward_cuda(backward, nullptr); });
}

// ---- entropy_attention -----------------------------------------------------------------------------------------------

// Causal, B batches, H query heads, G key heads, T queries, S keys, [.., rows, D] contiguous.
struct AttentionSize {
  int64_t B, H, G, T, S, D;
};

// out and entropy of query t of the last head against the formulas of kernels/entropy_attention.h.
template <class T>
void check_attention_row(Benchmark& benchmark, const AttentionSize& size, int64_t t, const Memory& q, const Memory& k,
                         const Memory& v, const Memory& out, const Memory& entropy) {
  const auto& [B, H, G, rows, S, D] = size;
  const int64_t head = B * H - 1, key_head = B * G - 1, at = head * rows + t, seen = S - rows + t + 1;
  const auto query = q.read<T>(at * D, D), keys = k.read<T>(key_head * S * D, seen * D),
             values = v.read<T>(key_head * S * D, seen * D), got = out.read<T>(at * D, D);
  std::vector<double> p(seen), expected(D);
  double sum = 0, weighted = 0;  // logits lie in (-8, 8): no maximum is needed
  for (int64_t j = 0; j < seen; ++j) {
    double s = 0;
    for (int64_t d = 0; d < D; ++d) s += static_cast<double>(gpu::widen(query[d])) * gpu::widen(keys[j * D + d]);
    s /= std::sqrt(static_cast<double>(D));
    sum += p[j] = std::exp(s);
    weighted += p[j] * s;
    for (int64_t d = 0; d < D; ++d) expected[d] += p[j] * gpu::widen(values[j * D + d]);
  }
  const double exact = std::log(sum) - weighted / sum, found = entropy.read<float>(at, 1)[0];
  benchmark.expect(std::fabs(found - exact) < 1e-2, "attention entropy", found, exact);
  for (int64_t d = 0; d < D; d += 7)
    benchmark.expect(std::fabs(gpu::widen(got[d]) - expected[d] / sum) < 1e-2, "attention out", gpu::widen(got[d]),
                     expected[d] / sum);
}

template <DType kType>
void entropy_attention(Benchmark& benchmark, const AttentionSize& size) {
  using T = gpu::TypeOf<kType>;
  using kernels::HeadStrides;
  const auto& [B, H, G, rows, S, D] = size;
  const int64_t queries = B * H * rows, keys = B * G * S;
  Memory q(queries * D * sizeof(T)), k(keys * D * sizeof(T)), v(keys * D * sizeof(T)), out(queries * D * sizeof(T));
  Memory dq(queries * D * sizeof(T)), dk(keys * D * sizeof(T)), dv(keys * D * sizeof(T)), dout(queries * D * sizeof(T));
  Memory lse(queries * 4), entropy(queries * 4), max_logit(queries * 4), dentropy(queries * 4);
  Memory anchor(queries * 4), log_sum(queries * 4);
  fill(q.as<T>(), queries * D, 21, -1, 1);
  fill(k.as<T>(), keys * D, 22, -1, 1);
  fill(v.as<T>(), keys * D, 23, -1, 1);
  fill(dout.as<T>(), queries * D, 24, -1, 1);
  fill(dentropy.as<float>(), queries, 25, -1, 1);

  kernels::EntropyAttentionForward forward;
  forward.dtype = kType;
  forward.shape = {B, H, G, rows, S, D, 1 / std::sqrt(static_cast<double>(D)), true};
  forward.q_strides = forward.out_strides = HeadStrides{H * rows * D, rows * D, D};
  forward.k_strides = forward.v_strides = HeadStrides{G * S * D, S * D, D};
  forward.statistic_strides = HeadStrides{H * rows, rows, 1};
  forward.q = q, forward.k = k, forward.v = v, forward.out = out;
  forward.lse = lse, forward.entropy = entropy, forward.max_logit = max_logit;
  forward.anchor = anchor, forward.log_sum = log_sum;
  Memory workspace(std::max<int64_t>(16, kernels::entropy_attention_workspace(forward.shape, kType)));
  forward.workspace = workspace;
  kernels::EntropyAttentionBackward backward;
  backward.dtype = kType;
  backward.shape = forward.shape;
  backward.q_strides = backward.out_strides = backward.dout_strides = backward.dq_strides = forward.q_strides;
  backward.k_strides = backward.v_strides = backward.dk_strides = backward.dv_strides = forward.k_strides;
  backward.statistic_strides = forward.statistic_strides;
  backward.q = q, backward.k = k, backward.v = v, backward.out = out, backward.dout = dout;
  backward.anchor = anchor, backward.log_sum = log_sum, backward.entropy = entropy, backward.dq = dq, backward.dk = dk,
  backward.dv = dv;
  Memory backward_workspace(std::max<int64_t>(16, kernels::entropy_attention_backward_workspace(forward.shape, kType)));
  backward.workspace = backward_workspace;

  kernels::entropy_attention_forward_cuda(forward, nullptr);
  for (const int64_t t : {int64_t{0}, rows / 2, rows - 1})
    check_attention_row<T>(benchmark, size, t, q, k, v, out, entropy);
  const std::string shape = std::to_string(B) + "," + std::to_string(H) + ":" + std::to_string(G) + "," +
                            std::to_string(rows) + "," + std::to_string(S) + "," + std::to_string(D);
  const std::string dtype = name_of(kType);
  const double pairs = static_cast<double>(B * H) * rows * (S - (rows - 1) / 2.0), product = 2 * pairs * D;
  const double query_bytes = static_cast<double>(queries) * (D * sizeof(T)),
               key_bytes = static_cast<double>(keys) * (D * sizeof(T));
  const auto run = [&] { kernels::entropy_attention_forward_cuda(forward, nullptr); };
  const auto run_backward = [&] { kernels::entropy_attention_backward_cuda(backward, nullptr); };
  benchmark.add("attention forward, entropy", shape, dtype, 2 * query_bytes + 2 * key_bytes + 12.0 * queries, run,
                2 * product);
  forward.entropy = nullptr;
  benchmark.add("attention forward", shape, dtype, 2 * query_bytes + 2 * key_bytes + 8.0 * queries, run, 2 * product);
  if (rows == 1) return;  // decoding
  benchmark.add("attention backward", shape, dtype, 4 * query_bytes + 4 * key_bytes + 4.0 * queries, run_backward,
                5 * product);
  backward.dentropy = dentropy;
  benchmark.add("attention backward, dentropy", shape, dtype, 4 * query_bytes + 4 * key_bytes + 12.0 * queries,
                run_backward, 5 * product);
}

// ---- grpo ------------------------------------------------------------------------------------------------------------

struct GrpoInputs {
  int64_t batch, length;
  Memory logprob, old_logprob, advantage, mask, selected;
  GrpoInputs(int64_t b, int64_t t)
      : batch(b),
        length(t),
        logprob(b * t * 4),
        old_logprob(b * t * 4),
        advantage(b * t * 4),
        mask(b * t),
        selected(b * t) {
    fill(logprob.as<float>(), b * t, 11, -3, 0);
    fill(old_logprob.as<float>(), b * t, 12, -3, 0);
    fill(advantage.as<float>(), b * t, 13, -1, 1);
    fill(mask.as<unsigned char>(), b * t, 14, 0.5f, 1.99f);  // 0 or 1, two thirds 1
  }
  // Mean over the tokens that count of max(-A r, -A clip(r)).
  double clip_loss() const {
    const size_t n = static_cast<size_t>(batch * length);
    const auto l = logprob.read<float>(0, n), o = old_logprob.read<float>(0, n), a = advantage.read<float>(0, n);
    const auto m = mask.read<unsigned char>(0, n);
    double sum = 0, tokens = 0;
    for (size_t i = 0; i < n; ++i) {
      if (!m[i]) continue;
      const double r = std::exp(static_cast<double>(l[i]) - o[i]), clipped = std::min(std::max(r, 0.8), 1.2);
      sum += std::max(-a[i] * r, -a[i] * clipped);
      tokens += 1;
    }
    return sum / tokens;
  }
};

void grpo_loss(Benchmark& benchmark, const GrpoInputs& in) {
  const int64_t count = in.batch * in.length;
  Memory loss(8), token_loss(count * 4), stats(kernels::kGrpoStats * 4), slope(count * 4), weight(in.batch * 4);
  Memory workspace(kernels::grpo_loss_workspace(in.batch, in.length)), dloss(4), dlogprob(count * 4);
  fill(dloss.as<float>(), 1, 0, 1, 1);
  kernels::GrpoLossForward forward;
  forward.batch = in.batch;
  forward.length = in.length;
  forward.rule.dual_clip = INFINITY;
  forward.logprob = in.logprob;
  forward.old_logprob = in.old_logprob;
  forward.advantage = in.advantage;
  forward.mask = in.mask.as<bool>();
  forward.loss = loss;
  forward.token_loss = token_loss;
  forward.stats = stats.as<float>();
  forward.slope = slope;
  forward.weight = weight;
  forward.workspace = workspace;
  kernels::GrpoLossBackward backward;
  backward.batch = in.batch;
  backward.length = in.length;
  backward.dloss = dloss;
  backward.slope = slope;
  backward.weight = weight;
  backward.mask = forward.mask;
  backward.dlogprob = dlogprob;

  kernels::grpo_loss_forward_cuda(forward, nullptr);
  const double got = loss.read<float>(0, 1)[0], expected = in.clip_loss();
  benchmark.expect(std::fabs(got - expected) < 1e-4, "grpo loss", got, expected);
  kernels::grpo_loss_backward_cuda(backward, nullptr);
  const auto gradient = dlogprob.read<float>(0, count), derivative = slope.read<float>(0, count);
  const auto weights = weight.read<float>(0, in.batch);
  for (int64_t i = 0; i < count; i += 1 + count / 1000) {
    const double exact = static_cast<double>(weights[i / in.length]) * derivative[i];
    benchmark.expect(std::fabs(gradient[i] - exact) <= 1e-6 * std::fabs(exact), "dlogprob", gradient[i], exact);
  }
  const std::string shape = shape_of(in.batch, in.length);
  benchmark.add("grpo_loss forward (clip)", shape, "float", count * (3 * 4.0 + 1 + 2 * 4.0),
                [&] { kernels::grpo_loss_forward_cuda(forward, nullptr); });
  forward.rule.form = kernels::GrpoForm::kSequenceRatio;
  benchmark.add("grpo_loss forward (gspo)", shape, "float", count * (3 * 4.0 + 1 + 2 * 4.0),
                [&] { kernels::grpo_loss_forward_cuda(forward, nullptr); });
  benchmark.add("grpo_loss backward", shape, "float", count * (4.0 + 1 + 4.0),
                [&] { kernels::grpo_loss_backward_cuda(backward, nullptr); });
}

void grpo_select(Benchmark& benchmark, const GrpoInputs& in, kernels::GrpoChoice choice, const char* name) {
  const int64_t count = in.batch * in.length;
  Memory workspace(kernels::grpo_select_workspace(in.batch, in.length));
  kernels::GrpoSelect select;
  select.batch = in.batch;
  select.length = in.length;
  select.choice = choice;
  select.seed = 5;
  select.fraction = 0.02;
  select.cov_lower = 0;
  select.cov_upper = 5;
  select.lower = 0;
  select.upper = INFINITY;
  select.logprob = in.logprob;
  select.old_logprob = in.old_logprob;
  select.advantage = in.advantage;
  select.mask = in.mask.as<bool>();
  select.selected = in.selected.as<bool>();
  select.workspace = workspace;
  kernels::grpo_select_cuda(select, nullptr);
  int64_t tokens = 0, selected = 0;
  for (const unsigned char m : in.mask.read<unsigned char>(0, count)) tokens += m;
  for (const unsigned char s : in.selected.read<unsigned char>(0, count)) selected += s;
  const int64_t expected = kernels::selection_count(select.fraction, select.minimum, tokens, tokens);
  benchmark.expect(selected == expected, std::string(name) + ": tokens selected", selected, expected);
  benchmark.add(name, shape_of(in.batch, in.length), "float", count * (3 * 4.0 + 2),
                [&] { kernels::grpo_select_cuda(select, nullptr); });
}

int run(const char* path) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "kernel_benchmark: no GPU (%s): nothing was timed\n",
                 error == cudaSuccess ? "the driver shows none" : cudaGetErrorString(error));
    return 3;
  }
  cudaDeviceProp device;
  GPU_CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
  Benchmark benchmark;
  for (const auto& shape : {std::pair<int64_t, int64_t>{256, 151936}, {2048, 32000}}) {
    token_entropy<DType::kFloat>(benchmark, shape.first, shape.second);
    token_entropy<DType::kBFloat16>(benchmark, shape.first, shape.second);
  }
  for (const AttentionSize& size : {AttentionSize{4, 16, 16, 2048, 2048, 64},
                                    {4, 16, 4, 2048, 2048, 128},
                                    {2, 8, 8, 1024, 1024, 256},
                                    {64, 32, 8, 1, 4096, 128}}) {
    entropy_attention<DType::kBFloat16>(benchmark, size);
    entropy_attention<DType::kFloat>(benchmark, size);
  }
  for (const int64_t batch : {256, 4096}) {
    const GrpoInputs inputs(batch, 2048);
    grpo_loss(benchmark, inputs);
    grpo_select(benchmark, inputs, kernels::GrpoChoice::kClipCov, "grpo_select (clip_cov)");
    grpo_select(benchmark, inputs, kernels::GrpoChoice::kKlCov, "grpo_select (kl_cov)");
  }
  if (path) benchmark.write(path, device);
  return benchmark.failed() ? 1 : 0;
}

}  // namespace
}  // namespace isentrope

int main(int count, char** arguments) {
  try {
    return isentrope::run(count > 1 ? arguments[1] : nullptr);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kernel_benchmark: %s\n", e.what());
    return 1;
  }
}
