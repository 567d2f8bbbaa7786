// The SIMT machine: CUDA's names for a host compiler, so that kernel sources run unchanged without a GPU.
//
// Every CUDA thread is a fiber; the fibers of a block run on one OS thread and switch only where they wait, so between
// two synchronisations a thread runs alone. What the machine cannot show (weak memory order, timing, instruction
// rounding) only a GPU can; what it shows better is misuse. Always on: barriers and warp operations that not all reach
// (deadlock, divergence, wrong masks), misaligned vector accesses, asynchronous copies outside shared memory; shared
// memory starts as NaN and an asynchronous copy lands at the last legal moment. In sources compiled with
// -fsanitize=thread (linked without its runtime: kernels/simt/checker.cpp is the runtime) also every plain load and
// store: races, accesses out of bounds, uninitialised reads, reads of data in flight. Each report names file and line.
//
// Not modelled: __activemask, grid-wide synchronisation, __threadfence as an order between plain accesses, clusters.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define SIMT_AT const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

namespace isentrope::simt {

// ---- what tests set and read -----------------------------------------------------------------------------------------

enum class Order { kFifo, kLifo, kRandom };

// First values from the environment: SIMT_ORDER (fifo, lifo, random), SIMT_SEED, SIMT_THREADS.
struct Config {
  Order order = Order::kFifo;  // which ready thread runs next
  uint64_t seed = 1;           // of kRandom; with the block's index it fixes the order, whatever the OS threads
  int os_threads = 2;          // blocks run on so many; checked launches on one
  int max_reports = 8;         // of one launch
};
Config& config();

struct Statistics {
  uint64_t threads = 0, switches = 0, barriers = 0, warp_operations = 0, mma = 0, ldmatrix = 0, copies = 0;
  uint64_t bank_conflicts = 0;  // wavefronts that ldmatrix took beyond one a matrix
};
// Of the last launch of this OS thread.
const Statistics& statistics();

// A launch that the machine found wrong; what() has one report a line.
class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// "Global memory": 256-byte aligned blocks between red zones, filled with NaN. name appears in reports.
void* device_malloc(size_t bytes, const char* name);
void device_free(void* p);
// The host wrote (copied) bytes bytes at p: they count as initialised.
void mark_initialised(const void* p, size_t bytes);
// Without the checker, a write of the host or a kernel outside its block is seen here: throws Failure.
void check_red_zones(const void* p);

// True in sources whose loads and stores the checker sees.
#if defined(__SANITIZE_THREAD__)
constexpr bool kInstrumented = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif
#else
constexpr bool kInstrumented = false;
#endif

// ---- what kernels/gpu calls ------------------------------------------------------------------------------------------

// Runs body(closure) once for every thread. closure [closure_bytes] holds the kernel's arguments.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* closure,
            size_t closure_bytes, bool checked);

struct Here {
  uint3 thread, block, block_size, grid_size;
};
extern __thread Here here;

template <class T, size_t kCount>
using ArrayOf = T[kCount];
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name);

void barrier(int id, int threads, const char* file, int line);
enum class Vote { kOr, kAnd, kCount };
int barrier_vote(Vote vote, int predicate, const char* file, int line);
void sync_warp(unsigned mask, const char* file, int line);
enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle(unsigned mask, uint64_t bits, Shuffle kind, int operand, int width, const char* file, int line);
unsigned ballot(unsigned mask, bool predicate, const char* file, int line);

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid_bytes, const char* file, int line);
void copy_async_commit();
void copy_async_wait(int pending);
void ldmatrix_x4(uint32_t (&fragment)[4], const void* row, bool transposed, const char* file, int line);
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool is_bfloat16, const char* file,
                  int line);

// Alignment of a 16-byte access, and in checked launches the access itself.
void vector_access(const void* p, bool write, const char* file, int line);
// Tells the checker of an atomic access of the caller's caller.
void atomic_access(const void* p, size_t bytes, const void* pc);
bool compare_exchange(void* p, void* expected, const void* desired, size_t bytes);

template <class T>
T shuffle_value(unsigned mask, T value, Shuffle kind, int operand, int width, const char* file, int line) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a shuffled value has at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, kind, operand, width, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T, class Update>
T atomic_update(T* p, Update update, const void* pc) {
  atomic_access(p, sizeof(T), pc);
  T old{}, desired;
  do desired = update(old);
  while (!compare_exchange(p, &old, &desired, sizeof(T)));
  return old;
}

// ---- 16-bit floats as stored -----------------------------------------------------------------------------------------

struct bfloat16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};
float to_float(bfloat16 x);
float to_float(half x);
bfloat16 to_bfloat16(float x);  // to nearest, ties to even; NaN stays NaN
half to_half(float x);

inline float to_float(bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline bfloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace isentrope::simt

// ---- CUDA's names ----------------------------------------------------------------------------------------------------

#define threadIdx (::isentrope::simt::here.thread)
#define blockIdx (::isentrope::simt::here.block)
#define blockDim (::isentrope::simt::here.block_size)
#define gridDim (::isentrope::simt::here.grid_size)

inline void __syncthreads(SIMT_AT) { isentrope::simt::barrier(0, 0, file_, line_); }
inline int __syncthreads_or(int p, SIMT_AT) {
  return isentrope::simt::barrier_vote(isentrope::simt::Vote::kOr, p, file_, line_);
}
inline int __syncthreads_and(int p, SIMT_AT) {
  return isentrope::simt::barrier_vote(isentrope::simt::Vote::kAnd, p, file_, line_);
}
inline int __syncthreads_count(int p, SIMT_AT) {
  return isentrope::simt::barrier_vote(isentrope::simt::Vote::kCount, p, file_, line_);
}
inline void __syncwarp(unsigned mask = ~0u, SIMT_AT) { isentrope::simt::sync_warp(mask, file_, line_); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_AT) {
  return isentrope::simt::shuffle_value(mask, value, isentrope::simt::Shuffle::kIndex, lane, width, file_, line_);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_AT) {
  return isentrope::simt::shuffle_value(mask, value, isentrope::simt::Shuffle::kUp, static_cast<int>(delta), width,
                                        file_, line_);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_AT) {
  return isentrope::simt::shuffle_value(mask, value, isentrope::simt::Shuffle::kDown, static_cast<int>(delta), width,
                                        file_, line_);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIMT_AT) {
  return isentrope::simt::shuffle_value(mask, value, isentrope::simt::Shuffle::kXor, lane_mask, width, file_, line_);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_AT) {
  return isentrope::simt::ballot(mask, predicate != 0, file_, line_);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_AT) {
  return isentrope::simt::ballot(mask, predicate != 0, file_, line_) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_AT) {
  return isentrope::simt::ballot(mask, predicate == 0, file_, line_) == 0;
}

// Out of line, so that the return address is the kernel's line. The operand's type follows the pointer's, as in CUDA.
#define SIMT_ATOMIC(name, expression)                                                       \
  template <class T>                                                                        \
  __attribute__((noinline)) T name(T* p, typename std::common_type<T>::type v) {            \
    return isentrope::simt::atomic_update(                                                  \
        p, [v](T old) { return static_cast<T>(expression); }, __builtin_return_address(0)); \
  }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicMax, old < v ? v : old)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicExch, (void(old), v))
SIMT_ATOMIC(atomicOr, old | v)
#undef SIMT_ATOMIC
template <class T>
__attribute__((noinline)) T atomicCAS(T* p, typename std::common_type<T>::type compare,
                                      typename std::common_type<T>::type v) {
  isentrope::simt::atomic_access(p, sizeof(T), __builtin_return_address(0));
  isentrope::simt::compare_exchange(p, &compare, &v, sizeof(T));
  return compare;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline void __threadfence() {}

template <class To, class From>
To simt_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as wide");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt_bits<float>(x); }
inline int __float_as_int(float x) { return simt_bits<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline float __expf(float x) { return ::expf(x); }
inline float __logf(float x) { return ::logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
