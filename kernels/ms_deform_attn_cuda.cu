// Multi-scale deformable attention on CUDA: the ops of fcache/ops/schemas.py for CUDA tensors.
//
// ms_deform_attn_cuda_order.cuh     in which order queries and cells are walked; sort keys
// ms_deform_attn_cuda_device.cuh    loads, one sample, how lanes share a head
// ms_deform_attn_cuda_forward.cuh   the forward kernel
// ms_deform_attn_cuda_backward.cuh  the backward kernel, with atomic additions into value's gradient
// ms_deform_attn_cuda_sorted.cuh    value's gradient by counting sort and gather: the same bits in every run
// ms_deform_attn_cuda_launch.cuh    choice of kernel, blocks and scratch
//
// No source here uses <<< >>> or a CUDA library, so that tests/ops/emulation can compile and run the kernels on a CPU.

#include "ms_deform_attn_cuda_launch.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace fcache::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Makes value's device the current one and finds the stream that PyTorch works on there.
struct OnDevice {
  explicit OnDevice(const Tensor& value) : guard(value.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(value.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
  DeviceGuard guard;
  cudaStream_t stream = nullptr;
};

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> level_shapes, Tensor reference_points, Tensor offsets,
                      Tensor logits) {
  const OnDevice on(value);
  return fused_forward(value, level_shapes, reference_points, offsets, logits, on.stream);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_output, Tensor value,
                                                           std::vector<int64_t> level_shapes, Tensor reference_points,
                                                           Tensor offsets, Tensor logits, bool deterministic) {
  const OnDevice on(value);
  return fused_backward(grad_output, value, level_shapes, reference_points, offsets, logits, deterministic, on.stream);
}

Tensor ms_deform_attn_sampled(Tensor value, std::vector<int64_t> level_shapes, Tensor locations, Tensor weights) {
  const OnDevice on(value);
  return sampled_forward(value, level_shapes, locations, weights, on.stream);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_sampled_backward(Tensor grad_output, Tensor value,
                                                                   std::vector<int64_t> level_shapes,
                                                                   Tensor locations, Tensor weights,
                                                                   bool deterministic) {
  const OnDevice on(value);
  return sampled_backward(grad_output, value, level_shapes, locations, weights, deterministic, on.stream);
}

}  // namespace
}  // namespace fcache::cuda

STABLE_TORCH_LIBRARY_IMPL(fcache, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&fcache::cuda::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&fcache::cuda::ms_deform_attn_backward));
  m.impl("ms_deform_attn_sampled", TORCH_BOX(&fcache::cuda::ms_deform_attn_sampled));
  m.impl("ms_deform_attn_sampled_backward", TORCH_BOX(&fcache::cuda::ms_deform_attn_sampled_backward));
}
