#include "kernels/gpu/async_copy.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/mma.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"
#include "tests/kernels/broken_kernels.h"
#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

// ---- barriers --------------------------------------------------------------------------------------------------------

__global__ void removed_barrier(bool repaired, int* out) {
  GPU_SHARED(int, tile, 64);
  tile[threadIdx.x] = threadIdx.x;
  if (repaired) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // defect: removed_barrier
}

// The scratch of one reduction is overwritten by the next before all have read it.
__global__ void missing_second_barrier(bool repaired, int* out) {
  GPU_SHARED(int, scratch, 1);
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) scratch[0] = round;  // defect: missing_second_barrier
    __syncthreads();
    sum += scratch[0];
    if (repaired) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void divergent_barrier(bool repaired, int* out) {
  if (repaired || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();  // defect: divergent_barrier
  }
  out[threadIdx.x] = 1;
}

__global__ void skipped_barrier(bool repaired, int* out) {
  if (repaired || threadIdx.x < 32) gpu::named_barrier(1, 64);  // defect: skipped_barrier
  out[threadIdx.x] = 1;
}

__global__ void missing_named_barrier(bool repaired, int* out) {
  GPU_SHARED(int, tile, 32);
  const int t = threadIdx.x;
  if (t < 32) tile[t] = t;
  if (repaired) gpu::named_barrier(2, 64);
  if (t >= 32) out[t] = tile[63 - t];  // defect: missing_named_barrier
}

// ---- warps -----------------------------------------------------------------------------------------------------------

__global__ void missing_syncwarp(bool repaired, int* out) {
  GPU_SHARED(int, tile, 64);
  const int t = threadIdx.x;
  tile[t] = t;
  if (repaired) __syncwarp();
  out[t] = tile[t ^ 1];  // defect: missing_syncwarp
}

__global__ void shuffle_as_fence(bool repaired, int* out) {
  GPU_SHARED(int, tile, 64);
  int t = threadIdx.x;
  tile[t] = t;
  const int other = gpu::shuffle_xor(t, 1);
  if (repaired) __syncwarp();
  out[t] = tile[other];  // defect: shuffle_as_fence
}

__global__ void divergent_shuffle(bool repaired, int* out) {
  int v = threadIdx.x;
  if (repaired || threadIdx.x % 2) v = gpu::shuffle_xor(v, 1);  // defect: divergent_shuffle
  __syncthreads();
  out[threadIdx.x] = v;
}

// The even lanes exit, so the odd ones go on without them.
__global__ void shuffle_from_exited_lane(bool repaired, int* out) {
  int v = threadIdx.x;
  if (repaired || threadIdx.x % 2) v = gpu::shuffle_xor(v, 1);  // defect: shuffle_from_exited_lane
  out[threadIdx.x] = v;
}

__global__ void overlapping_masks(bool repaired, int* out) {
  const unsigned mask = repaired || threadIdx.x % 32 < 16 ? gpu::kAllLanes : 0xffff8000u;
  out[threadIdx.x] = __shfl_sync(mask, static_cast<int>(threadIdx.x), 31);  // defect: overlapping_masks
}

// ---- addresses -------------------------------------------------------------------------------------------------------

__global__ void shared_index_off_by_one(bool repaired, int* out) {
  GPU_SHARED(int, tile, 64);
  GPU_SHARED(int, next, 64);
  next[threadIdx.x] = 0;
  tile[threadIdx.x + !repaired] = 1;  // defect: shared_index_off_by_one
  out[threadIdx.x] = next[threadIdx.x];
}

__global__ void dynamic_shared_overrun(bool repaired, int* out) {
  GPU_DYNAMIC_SHARED(int, tile);
  tile[repaired ? threadIdx.x : 2 * threadIdx.x] = 1;  // defect: dynamic_shared_overrun
  out[threadIdx.x] = 1;
}

__global__ void global_read_past_end(bool repaired, const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x + !repaired];  // defect: global_read_past_end
}

__global__ void global_read_before_start(bool repaired, const int* in, int* out) {
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x) - !repaired];  // defect: global_read_before_start
}

__global__ void global_write_past_end(bool repaired, int* out) {
  out[threadIdx.x + !repaired] = 1;  // defect: global_write_past_end
}

__global__ void misaligned_vector(bool repaired, const int* in, int* out) {
  const gpu::Pack<int> pack = gpu::load_pack(in + !repaired);  // defect: misaligned_vector
  out[threadIdx.x] = pack.value[0];
}

__global__ void vector_past_end(bool repaired, const int* in, int* out) {
  const gpu::Pack<int> pack = gpu::load_pack(in + (repaired ? 60 : 64));  // defect: vector_past_end
  out[threadIdx.x] = pack.value[0];
}

__global__ void host_memory(bool, const int* in, int* out) {
  out[threadIdx.x] = in[0];  // defect: host_memory
}

__global__ void ldmatrix_past_end(bool repaired, int* out) {
  GPU_SHARED(uint4, tile, 32);
  const int t = threadIdx.x;
  tile[t] = make_uint4(1, 1, 1, 1);
  __syncwarp();
  uint32_t fragment[4];
  gpu::ldmatrix_x4(fragment, tile + t + (repaired ? 0 : 32));  // defect: ldmatrix_past_end
  out[t] = static_cast<int>(fragment[0]);
}

// ---- values ----------------------------------------------------------------------------------------------------------

__global__ void uninitialised_shared(bool repaired, int* out) {
  GPU_SHARED(int, tile, 64);
  if (repaired || threadIdx.x % 2) tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];  // defect: uninitialised_shared
}

__global__ void uninitialised_global(bool repaired, int* out) {
  if (repaired) out[threadIdx.x] = 0;
  out[threadIdx.x] += 1;  // defect: uninitialised_global
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------

__global__ void missing_copy_wait(bool repaired, const int* in, int* out) {
  GPU_SHARED(int, tile, 128);
  gpu::copy_async_16(tile + 4 * threadIdx.x, in, true);
  gpu::copy_async_commit();
  if (repaired) gpu::copy_async_wait<0>();
  out[threadIdx.x] = tile[4 * threadIdx.x];  // defect: missing_copy_wait
  if (!repaired) gpu::copy_async_wait<0>();
}

__global__ void copy_left_in_flight(bool repaired, const int* in, int* out) {
  GPU_SHARED(int, tile, 128);
  gpu::copy_async_16(tile + 4 * threadIdx.x, in, true);  // defect: copy_left_in_flight
  gpu::copy_async_commit();
  if (repaired) gpu::copy_async_wait<0>();
  out[threadIdx.x] = 1;
}

__global__ void prefetch_into_live_buffer(bool repaired, const int* in, int* out) {
  GPU_SHARED(int, tile, 256);
  const int t = threadIdx.x;
  gpu::copy_async_16(tile + 4 * t, in, true);
  gpu::copy_async_commit();
  gpu::copy_async_wait<0>();
  __syncthreads();
  gpu::copy_async_16(tile + (repaired ? 128 : 0) + 4 * t, in, true);
  gpu::copy_async_commit();
  out[t] = tile[4 * t];  // defect: prefetch_into_live_buffer
  gpu::copy_async_wait<0>();
}

// ---- blocks ----------------------------------------------------------------------------------------------------------

__global__ void two_blocks_one_word(bool repaired, int* out) {
  out[repaired ? blockIdx.x * blockDim.x + threadIdx.x : threadIdx.x] = blockIdx.x;  // defect: two_blocks_one_word
}

__global__ void store_beside_atomic(bool repaired, int* out) {
  if (!repaired && threadIdx.x == 0) out[0] = 5;
  atomicAdd(out, 1);  // defect: store_beside_atomic
}

// ---- how each is launched: out [64], in [64] where the kernel takes one ------------------------------------------------

template <void (*kKernel)(bool, int*), int kThreads = 64, int kBlocks = 1, int kShared = 0, bool kWritten = false>
void run(bool repaired) {
  DeviceBuffer<int> out(64, "out");
  if (kWritten) out.write(std::vector<int>(64));
  gpu::launch(kKernel, dim3(kBlocks), dim3(kThreads), kShared, nullptr, repaired, out.data());
  out.read();
}
template <void (*kKernel)(bool, const int*, int*), int kThreads = 32>
void run_reader(bool repaired) {
  DeviceBuffer<int> in(std::vector<int>(64, 7), "in"), out(64, "out");
  gpu::launch(kKernel, dim3(1), dim3(kThreads), 0, nullptr, repaired, in.data(), out.data());
  out.read();
}
void run_on_host_memory(bool repaired) {
  const std::vector<int> host(64, 7);
  DeviceBuffer<int> in(host, "in"), out(64, "out");
  gpu::launch(host_memory, dim3(1), dim3(32), 0, nullptr, repaired, repaired ? in.data() : host.data(), out.data());
}

}  // namespace

const std::vector<Defect>& defects() {
  static const std::vector<Defect> all = {
      {"removed_barrier", "RACE", false, run<removed_barrier>},
      {"missing_second_barrier", "RACE", false, run<missing_second_barrier>},
      {"divergent_barrier", "DIVERGENT BARRIER", true, run<divergent_barrier>},
      {"skipped_barrier", "DEADLOCK", true, run<skipped_barrier>},
      {"missing_named_barrier", "RACE", false, run<missing_named_barrier>},
      {"missing_syncwarp", "RACE", false, run<missing_syncwarp>},
      {"shuffle_as_fence", "RACE", false, run<shuffle_as_fence>},
      {"divergent_shuffle", "DEADLOCK", true, run<divergent_shuffle>},
      {"shuffle_from_exited_lane", "INACTIVE LANE", true, run<shuffle_from_exited_lane>},
      {"overlapping_masks", "OVERLAPPING MASKS", true, run<overlapping_masks>},
      {"shared_index_off_by_one", "OUT OF BOUNDS", false, run<shared_index_off_by_one>},
      {"dynamic_shared_overrun", "OUT OF BOUNDS", false, run<dynamic_shared_overrun, 64, 1, 256>},
      {"global_read_past_end", "OUT OF BOUNDS", false, run_reader<global_read_past_end, 64>},
      {"global_read_before_start", "OUT OF BOUNDS", false, run_reader<global_read_before_start>},
      {"global_write_past_end", "OUT OF BOUNDS", false, run<global_write_past_end>},
      {"misaligned_vector", "MISALIGNED", true, run_reader<misaligned_vector>},
      {"vector_past_end", "OUT OF BOUNDS", false, run_reader<vector_past_end>},
      {"host_memory", "NOT DEVICE MEMORY", false, run_on_host_memory},
      {"ldmatrix_past_end", "OUT OF BOUNDS", true, run<ldmatrix_past_end, 32>},
      {"uninitialised_shared", "UNINITIALISED", false, run<uninitialised_shared>},
      {"uninitialised_global", "UNINITIALISED", false, run<uninitialised_global>},
      {"missing_copy_wait", "IN FLIGHT", false, run_reader<missing_copy_wait>},
      {"copy_left_in_flight", "IN FLIGHT", true, run_reader<copy_left_in_flight>},
      {"prefetch_into_live_buffer", "IN FLIGHT", false, run_reader<prefetch_into_live_buffer>},
      {"two_blocks_one_word", "RACE", false, run<two_blocks_one_word, 32, 2>},
      {"store_beside_atomic", "RACE", false, run<store_beside_atomic, 64, 1, 0, true>},
  };
  return all;
}

}  // namespace isentrope::testing
