// The CUDA ops run by the emulation on CPU tensors as torch.ops.fcache_emulated.*, and the index arithmetic for ctypes.
#include "ms_deform_attn_cuda_launch.cuh"

namespace {

using namespace fcache;

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> level_shapes, Tensor reference_points, Tensor offsets,
                      Tensor logits) {
  return cuda::fused_forward(value, level_shapes, reference_points, offsets, logits, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_output, Tensor value,
                                                           std::vector<int64_t> level_shapes, Tensor reference_points,
                                                           Tensor offsets, Tensor logits, bool deterministic) {
  return cuda::fused_backward(grad_output, value, level_shapes, reference_points, offsets, logits, deterministic,
                              nullptr);
}

Tensor ms_deform_attn_sampled(Tensor value, std::vector<int64_t> level_shapes, Tensor locations, Tensor weights) {
  return cuda::sampled_forward(value, level_shapes, locations, weights, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_sampled_backward(Tensor grad_output, Tensor value,
                                                                   std::vector<int64_t> level_shapes,
                                                                   Tensor locations, Tensor weights,
                                                                   bool deterministic) {
  return cuda::sampled_backward(grad_output, value, level_shapes, locations, weights, deterministic, nullptr);
}

__global__ void part_in_branches() {
  if (threadIdx.x % 2 == 0)
    __shfl_sync(cuda::kFullWarp, 1, 0);
  else
    __shfl_sync(cuda::kFullWarp, 1, 0);
}

__global__ void end_early() {
  if (threadIdx.x >= 16) return;
  __syncwarp();
}

Levels levels_of(int count, const int* shapes) {
  std::vector<int64_t> flat(shapes, shapes + 2 * count);
  int64_t cells = 0;
  for (int l = 0; l < count; ++l) cells += flat[2 * l] * flat[2 * l + 1];
  return read_levels(flat, cells);
}

}  // namespace

extern "C" {

void set_seed(unsigned seed) { emulated::machine.seed = seed; }

int64_t set_sort_scratch(int64_t bytes) { return std::exchange(cuda::sort_scratch_bytes, bytes); }

// Which images the launches for num_images from `first` on cover: (first, number) each; returns how many launches.
int image_launches(int64_t first, int64_t num_images, int64_t* launches) {
  int count = 0;
  cuda::for_images(cuda::Shape{}, first, num_images, [&](const cuda::Tiling& tiling, dim3 grid, int) {
    launches[2 * count] = tiling.first_image;
    launches[2 * count++ + 1] = grid.y;
  });
  return count;
}

// What the emulation says of a kernel whose lanes part before a shuffle: 0 in two branches, 1 where half have ended.
const char* run_faulty(int kind) {
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(32);
  emulated::machine.last_failure.clear();
  cudaLaunchKernelEx(&config, kind == 0 ? part_in_branches : end_early);
  return emulated::machine.last_failure.c_str();
}

// How many quotients of `count` numbers from `first` on are wrong.
int wrong_quotients(unsigned divisor, unsigned first, unsigned count) {
  const cuda::Divisor by(divisor);
  int wrong = 0;
  for (unsigned i = first; i < first + count; ++i)
    wrong += by.quotient(static_cast<int>(i)) != static_cast<int>(i / divisor);
  return wrong;
}

// Writes (grid, y, x, index) of each of num_queries positions; returns the number of grids.
int walk(int count, const int* shapes, int num_queries, int* places) {
  const Levels levels = levels_of(count, shapes);
  int cells = 0;
  for (int l = 0; l < count; ++l) cells += levels.height[l] * levels.width[l];
  const cuda::Order order = cuda::order_of_queries(levels, cells, num_queries);
  for (int i = 0; i < num_queries; ++i) {
    const cuda::Place place = cuda::place_at(order, i);
    const int row[4] = {place.grid, place.y, place.x, place.index};
    std::copy(row, row + 4, places + 4 * i);
  }
  return order.num_grids;
}

int bucket(int count, const int* shapes, int level, int y, int x) {
  const Levels levels = levels_of(count, shapes);
  return cuda::bucket_of(levels, cuda::make_buckets(levels), level, y, x);
}

int first_bucket(int count, const int* shapes, int level, int y, int x, int below) {
  const Levels levels = levels_of(count, shapes);
  return cuda::first_bucket(levels, cuda::make_buckets(levels), level, y, x, below);
}

int num_buckets(int count, const int* shapes) { return cuda::make_buckets(levels_of(count, shapes)).count; }

}  // extern "C"

STABLE_TORCH_LIBRARY(fcache_emulated, m) {
  m.def(
      "ms_deform_attn(Tensor value, int[] level_shapes, Tensor reference_points, Tensor offsets, Tensor logits) -> "
      "Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] level_shapes, Tensor reference_points, "
      "Tensor offsets, Tensor logits, bool deterministic) -> (Tensor, Tensor, Tensor)");
  m.def("ms_deform_attn_sampled(Tensor value, int[] level_shapes, Tensor locations, Tensor weights) -> Tensor");
  m.def(
      "ms_deform_attn_sampled_backward(Tensor grad_output, Tensor value, int[] level_shapes, Tensor locations, "
      "Tensor weights, bool deterministic) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fcache_emulated, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("ms_deform_attn_sampled", TORCH_BOX(&ms_deform_attn_sampled));
  m.impl("ms_deform_attn_sampled_backward", TORCH_BOX(&ms_deform_attn_sampled_backward));
}
