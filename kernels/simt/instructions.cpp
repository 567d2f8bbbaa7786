// Asynchronous copies, ldmatrix and mma of the SIMT machine, and the 16-bit float conversions.
#include <algorithm>

#include "kernels/simt/machine.h"

namespace isentrope::simt {

// ---- cp.async: starts with NaN in the target, lands at the wait, the last legal moment -------------------------------

static void require_shared(const void* p, size_t bytes, const char* what, const char* file, int line) {
  const Worker& w = *worker;
  const char* c = static_cast<const char*>(p);
  if (c < w.shared || c + bytes > w.shared + w.shared_used)
    fail(
        "OUT OF BOUNDS: %s at %s:%d: thread %d gives an address outside the block's shared memory (offset %td, %zu "
        "bytes)",
        what, short_path(file), line, w.current->linear, c - w.shared, w.shared_used);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    fail("MISALIGNED: %s at %s:%d: thread %d gives shared offset %td; wanted a multiple of %zu", what, short_path(file),
         line, w.current->linear, c - w.shared, bytes);
}

__attribute__((noinline)) void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid_bytes,
                                          const char* file, int line) {
  const Quiet quiet;
  Worker& w = *worker;
  Thread& t = *w.current;
  ++w.statistics.copies;
  require_shared(shared, bytes, "asynchronous copy", file, line);
  if (valid_bytes && reinterpret_cast<uintptr_t>(global) % bytes != 0)
    fail("MISALIGNED: asynchronous copy at %s:%d: thread %d gives global address %p; wanted a multiple of %u",
         short_path(file), line, t.linear, global, bytes);
  if (w.checked) checker_copy_started(shared, bytes, global, valid_bytes, __builtin_return_address(0));
  std::memset(shared, 0xff, bytes);
  t.copies.push_back(
      {static_cast<char*>(shared), static_cast<const char*>(global), bytes, valid_bytes, t.group, file, line});
}

void copy_async_commit() { ++worker->current->group; }

void copy_async_wait(int pending) {
  const Quiet quiet;
  Worker& w = *worker;
  Thread& t = *w.current;
  auto copy = t.copies.begin();
  for (; copy != t.copies.end() && copy->group + pending < t.group; ++copy) {
    std::memcpy(copy->to, copy->from, copy->valid);
    std::memset(copy->to + copy->valid, 0, copy->bytes - copy->valid);
    if (w.checked) checker_copy_landed(copy->to, copy->bytes);
  }
  t.copies.erase(t.copies.begin(), copy);
}

// ---- vector accesses ---------------------------------------------------------------------------------------------------

void require_vector_alignment(const void* p, const char* file, int line) {
  if (worker && reinterpret_cast<uintptr_t>(p) % 16 != 0)
    fail("MISALIGNED: 16-byte access at %s:%d: block %u thread %d gives address %p, %zu bytes past a multiple of 16",
         short_path(file), line, worker->block, worker->current->linear, p, reinterpret_cast<uintptr_t>(p) % 16);
}

// ---- ldmatrix ---------------------------------------------------------------------------------------------------------

namespace {
struct LdmatrixArgument {
  uint32_t* fragment;
  const char* row;
  const char* file;
  int line;
  const void* pc;
};
struct MmaArgument {
  float* d;
  const uint32_t *a, *b;
};
}  // namespace

static void load_matrices(const Group& group) {
  const bool transposed = group.parameter;
  Worker& w = *worker;
  ++w.statistics.ldmatrix;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const char* row[8];
    int in_bank[8] = {};  // rows by which of the eight 16-byte groups of banks they start in
    for (int i = 0; i < 8; ++i) {
      const auto& a = *static_cast<LdmatrixArgument*>(group.arguments[matrix * 8 + i]);
      row[i] = a.row;
      require_shared(a.row, 16, "ldmatrix", a.file, a.line);
      ++in_bank[(a.row - w.shared) / 16 % 8];
      if (w.checked) checker_read_shared(*w.threads[w.current->warp * 32 + matrix * 8 + i], a.row, 16, a.pc);
    }
    w.statistics.bank_conflicts += *std::max_element(in_bank, in_bank + 8) - 1;
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      uint16_t element[2];
      for (int k = 0; k < 2; ++k)
        std::memcpy(&element[k], transposed ? row[2 * t + k] + 2 * g : row[g] + 2 * (2 * t + k), 2);
      static_cast<LdmatrixArgument*>(group.arguments[lane])->fragment[matrix] = element[0] | uint32_t{element[1]} << 16;
    }
  }
}

__attribute__((noinline)) void ldmatrix_x4(uint32_t (&fragment)[4], const void* row, bool transposed, const char* file,
                                           int line) {
  LdmatrixArgument a{fragment, static_cast<const char*>(row), file, line, __builtin_return_address(0)};
  warp_operation(~0u, WarpOp::kLdmatrix, &a, load_matrices, transposed, file, line);
}

// ---- mma: products exact, sums in float in the order of k -----------------------------------------------------------

static float element(uint32_t word, int index, bool is_bfloat16) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * index));
  return is_bfloat16 ? to_float(bfloat16{bits}) : to_float(half{bits});
}

static void multiply(const Group& group) {
  const bool is_bfloat16 = group.parameter;
  float a[16][16], b[16][8], d[16][8];
  ++worker->statistics.mma;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = *static_cast<MmaArgument*>(group.arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 2; ++k) a[g + i % 2 * 8][2 * t + i / 2 * 8 + k] = element(m.a[i], k, is_bfloat16);
    for (int i = 0; i < 2; ++i)
      for (int k = 0; k < 2; ++k) b[2 * t + i * 8 + k][g] = element(m.b[i], k, is_bfloat16);
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = m.d[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaArgument*>(group.arguments[lane])->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool is_bfloat16, const char* file,
                  int line) {
  const uint32_t b[2] = {b0, b1};
  MmaArgument m{d, a, b};
  warp_operation(~0u, WarpOp::kMma, &m, multiply, is_bfloat16, file, line);
}

// ---- IEEE 754 binary16 -------------------------------------------------------------------------------------------------

float to_float(half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  float value;
  if (magnitude < 0x400) {  // zero and denormals: multiples of 2^-24
    value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (magnitude >= 0x7c00 ? 0x7f800000u | (magnitude & 0x3ffu) << 13
                                                    : (magnitude << 13) + ((127u - 15u) << 23));
  std::memcpy(&value, &bits, 4);
  return value;
}

half to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};                                  // NaN
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                                 // below 2^-14: denormal
    const float scaled = std::fabs(x) * 0x1p24f;
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(scaled)))};
  }
  const uint32_t rebased = magnitude - ((127u - 15u) << 23);
  return {static_cast<uint16_t>(sign | ((rebased + 0xfffu + (rebased >> 13 & 1)) >> 13))};
}

}  // namespace isentrope::simt
