# LibTorch as imported targets, from the torch that `python -c "import torch"` finds.
#
# find_package(Torch) of a CUDA torch refuses to configure without a CUDA toolkit and mixes a system toolkit's
# libraries in where there is one, so include folders and libraries are asked of torch itself.
# Defines: TORCH_CUBLAS (the cuBLAS that torch loads); torch::torch (C++ API), torch::python (for pybind11 modules); TORCH_VERSION, TORCH_CUDA (toolkit version
# torch was built with, or empty), TORCH_CPU_CAPABILITY (the instruction set that torch uses here, as "AVX512"), TORCH_LIB_DIR, Python_EXECUTABLE.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "
import torch, torch.utils.cpp_extension as e, os
print(torch.__version__)
print(torch.version.cuda or '')
print(os.path.join(os.path.dirname(torch.__file__), 'lib'))
print(';'.join(p for p in e.include_paths()))
print(int(torch.compiled_with_cxx11_abi()))
print(torch.backends.cpu.get_cpu_capability().upper())"
  OUTPUT_VARIABLE torch_facts ERROR_VARIABLE torch_error RESULT_VARIABLE torch_missing OUTPUT_STRIP_TRAILING_WHITESPACE)
if(torch_missing)
  message(FATAL_ERROR "isentrope: no torch in ${Python_EXECUTABLE}. Run scripts/setup.sh, or activate an environment "
                      "with torch >= 2.11, or pass -DPython_EXECUTABLE=<python>.\n${torch_error}")
endif()
string(REPLACE ";" "\\;" torch_facts "${torch_facts}")
string(REPLACE "\n" ";" torch_facts "${torch_facts}")
list(GET torch_facts 0 TORCH_VERSION)
list(GET torch_facts 1 TORCH_CUDA)
list(GET torch_facts 2 TORCH_LIB_DIR)
list(GET torch_facts 3 torch_includes)
list(GET torch_facts 4 torch_cxx11_abi)
list(GET torch_facts 5 TORCH_CPU_CAPABILITY)
if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "isentrope: torch ${TORCH_VERSION} is older than 2.11, the oldest that is tested.")
endif()

add_library(torch::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(torch::torch SYSTEM INTERFACE ${torch_includes})
target_compile_definitions(torch::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
target_link_directories(torch::torch INTERFACE ${TORCH_LIB_DIR})
# A CUDA torch registers its backends from libtorch_cuda, which nothing refers to by name: keep it linked.
# An older system NCCL must not fail the link of an executable, hence --allow-shlib-undefined.
target_link_libraries(torch::torch INTERFACE torch torch_cpu c10)
if(TORCH_CUDA)
  target_link_libraries(torch::torch INTERFACE -Wl,--push-state,--no-as-needed torch_cuda c10_cuda -Wl,--pop-state)
endif()
target_link_options(torch::torch INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath-link,${TORCH_LIB_DIR})
# libtorch of torch 2.11 exports a std::filesystem of its own, which calls what it does not have (remove_all: address 0).
# The first library in a program's list that has a symbol gives it: libstdc++ stands before torch.
target_link_options(torch::torch INTERFACE "LINKER:--push-state,--no-as-needed,-lstdc++,--pop-state")

add_library(torch::python INTERFACE IMPORTED GLOBAL)
target_link_libraries(torch::python INTERFACE torch::torch torch_python)

# The cuBLAS that torch itself loads: a wheel of its own beside torch, or one of the system's toolkit. No wheel has a
# libcublas.so to link by name.
if(TORCH_CUDA)
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${TORCH_CUDA}")
  file(GLOB TORCH_CUBLAS ${TORCH_LIB_DIR}/../../nvidia/*/lib/libcublas.so.${torch_cuda_major})
  if(NOT TORCH_CUBLAS)
    set(TORCH_CUBLAS cublas)
  endif()
endif()

# The OpenMP runtime that torch itself loads (its wheels carry their own): at::parallel_for is serial without -fopenmp,
# and a second runtime would not hear of torch.set_num_threads.
add_library(torch::openmp INTERFACE IMPORTED GLOBAL)
target_compile_options(torch::openmp INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
file(GLOB torch_gomp ${TORCH_LIB_DIR}/libgomp*.so* ${TORCH_LIB_DIR}/../../torch.libs/libgomp*.so*)
if(torch_gomp)
  list(GET torch_gomp 0 torch_gomp)
  target_link_libraries(torch::openmp INTERFACE ${torch_gomp})
else()
  target_link_options(torch::openmp INTERFACE -fopenmp)
endif()
