// What sigma_linear and linear_token_entropy need of CUDA beside their kernels: products by cuBLAS; sigma_linear's alpha and beta
// stay on the device. In a file of its own, since it is the only one that includes CUDA's headers and links cuBLAS.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>

#include "csrc/ops/entries.h"

namespace isentrope::ops {
namespace {

// The handle of the current stream, its pointer mode put back however the block ends.
struct PointerMode {
  cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
  cublasPointerMode_t before;
  explicit PointerMode(cublasPointerMode_t mode) {
    TORCH_CUDABLAS_CHECK(cublasGetPointerMode(handle, &before));
    TORCH_CUDABLAS_CHECK(cublasSetPointerMode(handle, mode));
  }
  ~PointerMode() { cublasSetPointerMode(handle, before); }
};

// A row-major matrix as cuBLAS reads it, by columns: as it lies, it is its own transpose.
struct Operand {
  cublasOperation_t operation;
  int leading;
  explicit Operand(const Tensor& x) {
    const bool by_rows = (x.stride(1) == 1 || x.size(1) == 1) && (x.stride(0) >= x.size(1) || x.size(0) == 1);
    const int64_t stride = by_rows ? x.stride(0) : x.stride(1), least = by_rows ? x.size(1) : x.size(0);
    operation = by_rows ? CUBLAS_OP_N : CUBLAS_OP_T;
    leading = static_cast<int>(stride > least ? stride : least);
  }
};

struct Types {
  cudaDataType_t element;
  cublasComputeType_t compute;
};

Types types_of(at::ScalarType type) {
  const bool tf32 = at::globalContext().allowTF32CuBLAS();
  switch (type) {
    case at::kDouble:
      return {CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case at::kFloat:
      return {CUDA_R_32F, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F};
    case at::kBFloat16:
      return {CUDA_R_16BF, CUBLAS_COMPUTE_32F};
    case at::kHalf:
      return {CUDA_R_16F, CUBLAS_COMPUTE_32F};
    default:
      TORCH_CHECK_TYPE(false, "isentrope: no product takes ", type);
  }
}

// out = alpha · a b + beta · out; a and b are of one type, out of that or of the one that sums are kept in.
void product(cublasPointerMode_t mode, const Tensor& out, const Tensor& a, const Tensor& b, const void* alpha,
             const void* beta) {
  const PointerMode cublas(mode);
  const Operand left(a), right(b);
  const Types types = types_of(a.scalar_type());
  // By columns out is outᵀ = bᵀ aᵀ.
  TORCH_CUDABLAS_CHECK(cublasGemmEx(cublas.handle, right.operation, left.operation, static_cast<int>(out.size(1)),
                                    static_cast<int>(out.size(0)), static_cast<int>(a.size(1)), alpha,
                                    b.const_data_ptr(), types.element, right.leading, a.const_data_ptr(), types.element,
                                    left.leading, beta, out.mutable_data_ptr(), types_of(out.scalar_type()).element,
                                    static_cast<int>(out.size(1)), types.compute, CUBLAS_GEMM_DEFAULT));
}

}  // namespace

void sigma_matmul_cuda(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& factors,
                       kernels::SigmaFactor alpha, kernels::SigmaFactor beta) {
  const char* factor = static_cast<const char*>(factors.const_data_ptr());
  product(CUBLAS_POINTER_MODE_DEVICE, out, a, b, factor + alpha * factors.element_size(),
          factor + beta * factors.element_size());
}

void logit_product_cuda(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  if (a.scalar_type() == at::kDouble) {
    const double alpha = 1, beta = add;
    return product(CUBLAS_POINTER_MODE_HOST, out, a, b, &alpha, &beta);
  }
  const float alpha = 1, beta = add;
  product(CUBLAS_POINTER_MODE_HOST, out, a, b, &alpha, &beta);
}

}  // namespace isentrope::ops
