// Host side of the CUDA kernels: which kernel, how many blocks, what scratch.
#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>

#include "ms_deform_attn_cuda_backward.cuh"
#include "ms_deform_attn_cuda_forward.cuh"
#include "ms_deform_attn_cuda_sorted.cuh"

namespace fcache::cuda {

constexpr int64_t kMaxBlocksY = 65535;
constexpr int64_t kMaxBlocksX = std::numeric_limits<int32_t>::max();
constexpr int64_t kEnoughBlocks = 512;  // from here on smaller tiles do not fill a GPU better
constexpr int kLargestTile = 64, kSmallestTile = 8;
constexpr int64_t kSortWarps = 2048;
constexpr int64_t kSortCounts = int64_t{4} << 20;
inline int64_t sort_scratch_bytes = int64_t{256} << 20;  // a variable, so that a test can see several passes

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int block, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.stream = stream;
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  STD_TORCH_CHECK(launched == cudaSuccess,
                  "ms_deform_attn: a CUDA kernel did not start: ", cudaGetErrorString(launched));
  const cudaError_t earlier = cudaGetLastError();
  STD_TORCH_CHECK(earlier == cudaSuccess, "ms_deform_attn: CUDA reports ", cudaGetErrorString(earlier));
}

// Loads of 16 bytes need the alignment that a view into the middle of a buffer may lack.
inline Tensor aligned(const Tensor& tensor) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return is_aligned ? tensor : torch::stable::clone(tensor);
}

inline bool is_float(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

inline void check_counts(const Problem& problem) {
  const int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(problem.num_queries * problem.num_samples() <= limit,
                  "ms_deform_attn: Q * L * P must stay below 2^31 on CUDA");
  STD_TORCH_CHECK(problem.num_heads * problem.head_dim <= limit / int64_t{sizeof(double)},
                  "ms_deform_attn: H * D must stay below 2^28 on CUDA");
}

inline Call make_call(const Problem& problem, const Tensor& value, const Tensor& points, const Tensor& scores) {
  Call call;
  call.value = value.const_data_ptr();
  call.points = points.const_data_ptr();
  call.scores = scores.const_data_ptr();
  call.points_float = is_float(points);
  call.scores_float = is_float(scores);
  call.num_cells = static_cast<int>(problem.num_cells);
  call.num_queries = static_cast<int>(problem.num_queries);
  call.num_heads = static_cast<int>(problem.num_heads);
  call.head_dim = static_cast<int>(problem.head_dim);
  call.num_points = static_cast<int>(problem.num_points);
  call.num_samples = static_cast<int>(problem.num_samples());
  call.reference_batch_stride = problem.reference_batch_stride;
  call.reference_query_stride = problem.reference_query_stride;
  call.reference_level_stride = problem.reference_level_stride;
  call.levels = problem.levels;
  return call;
}

struct Shape {
  Tiling tiling;
  dim3 grid;
  int block = 0;
};

// Two heads share a block where a head fills only half a cache line; tiles shrink until the GPU has enough blocks.
inline Shape shape_blocks(const Order& order, int64_t num_positions, int64_t num_heads, int64_t head_bytes,
                          int64_t num_images, int num_lanes) {
  Shape shape;
  Tiling& tiling = shape.tiling;
  tiling.order = order;
  tiling.num_positions = static_cast<int>(num_positions);
  tiling.heads_log2 = head_bytes <= 64 && num_heads % 2 == 0 ? 1 : 0;
  tiling.head_parts = static_cast<int>(num_heads >> tiling.heads_log2);
  const auto num_tiles = [&](int tile) { return (num_positions + tile - 1) / tile; };
  tiling.tile = kLargestTile;
  while (tiling.tile > kSmallestTile && num_tiles(tiling.tile) * tiling.head_parts * num_images < kEnoughBlocks)
    tiling.tile /= 2;
  tiling.num_tiles = static_cast<int>(num_tiles(tiling.tile));
  const int64_t blocks = int64_t{tiling.num_tiles} * tiling.head_parts;
  STD_TORCH_CHECK(blocks <= kMaxBlocksX, "ms_deform_attn: ", num_positions, " queries or cells of ", num_heads,
                  " heads are more than a CUDA grid holds");
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block = std::min(kBlock, (tiling.tile << tiling.heads_log2) * num_lanes);
  return shape;
}

// Calls run(tiling, grid, block) once per 65535 images.
template <typename Run>
void for_images(Shape shape, int64_t first_image, int64_t num_images, const Run& run) {
  for (int64_t done = 0; done < num_images; done += kMaxBlocksY) {
    shape.tiling.first_image = first_image + done;
    shape.grid.y = static_cast<unsigned>(std::min(kMaxBlocksY, num_images - done));
    run(shape.tiling, shape.grid, shape.block);
  }
}

template <int kLanes_, int kVector_, int kLevels_ = 0, int kPoints_ = 0>
struct Variant {
  static constexpr int kLanes = kLanes_, kVector = kVector_, kLevels = kLevels_, kPoints = kPoints_;
};

// Calls run(variant): heads of 32 and 64 channels with 4 points on 1, 3 or 4 levels have kernels of their own, and all
// others run in loops.
template <typename T, typename Run>
void choose_variant(int64_t head_dim, int64_t num_levels, int64_t num_points, const Run& run) {
  constexpr int kVector = 16 / sizeof(T);
  if constexpr (!std::is_same_v<T, double>) {
    if (num_points == 4 && head_dim == 32) {
      if (num_levels == 1) return run(Variant<32 / kVector, kVector, 1, 4>{});
      if (num_levels == 3) return run(Variant<32 / kVector, kVector, 3, 4>{});
      if (num_levels == 4) return run(Variant<32 / kVector, kVector, 4, 4>{});
    }
    if (num_points == 4 && head_dim == 64) {
      if (num_levels == 1) return run(Variant<64 / kVector, kVector, 1, 4>{});
      if (num_levels == 3) return run(Variant<64 / kVector, kVector, 3, 4>{});
    }
  }
  if (head_dim % kVector != 0) return run(Variant<kWarp, 1>{});
  if constexpr (!std::is_same_v<T, double>) {  // float64 serves tests, and fewer kernels compile sooner
    if (head_dim <= 4 * kVector) return run(Variant<4, kVector>{});
    if (head_dim <= 8 * kVector) return run(Variant<8, kVector>{});
  }
  return run(Variant<16, kVector>{});
}

// Calls run(T{}) with the type of value.
template <typename Run>
auto for_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Half:
      return run(Half{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    default:  // read_problem admits these four
      return run(double{});
  }
}

template <typename T>
void run_forward(const Problem& problem, const Call& call, void* out, cudaStream_t stream) {
  choose_variant<T>(problem.head_dim, problem.levels.count, problem.num_points, [&](auto variant) {
    using V = decltype(variant);
    const Order order = order_of_queries(problem.levels, call.num_cells, call.num_queries);
    const Shape shape = shape_blocks(order, problem.num_queries, problem.num_heads, problem.head_dim * sizeof(T),
                                     problem.batch, V::kLanes);
    for_images(shape, 0, problem.batch, [&](const Tiling& tiling, dim3 grid, int block) {
      launch(&forward_kernel<T, V::kLanes, V::kVector, V::kLevels, V::kPoints>, grid, block, stream, call, tiling,
             static_cast<T*>(out));
    });
  });
}

template <typename T>
void run_backward(const Problem& problem, const Call& call, const void* grad_output, const Gradients& gradients,
                  cudaStream_t stream) {
  choose_variant<T>(problem.head_dim, problem.levels.count, problem.num_points, [&](auto variant) {
    using V = decltype(variant);
    const Order order = order_of_queries(problem.levels, call.num_cells, call.num_queries);
    const Shape shape = shape_blocks(order, problem.num_queries, problem.num_heads, problem.head_dim * sizeof(T),
                                     problem.batch, V::kLanes);
    for_images(shape, 0, problem.batch, [&](const Tiling& tiling, dim3 grid, int block) {
      launch(&backward_kernel<T, V::kLanes, V::kVector, V::kLevels, V::kPoints>, grid, block, stream, call, tiling,
             static_cast<const T*>(grad_output), gradients);
    });
  });
}

template <typename T>
void run_round(const float* from, void* to, int64_t count, cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>((count + kBlock - 1) / kBlock, 16384);
  launch(&round_kernel<T>, dim3(static_cast<unsigned>(blocks)), kBlock, stream, from, static_cast<T*>(to), count);
}

template <typename T>
void run_gather(const Problem& problem, const Call& call, const Sort& sort, const void* grad_output, void* grad_value,
                cudaStream_t stream) {
  const auto run = [&](auto variant, auto exact) {
    using V = decltype(variant);
    const Shape shape = shape_blocks(order_of_cells(problem.levels), problem.num_cells, problem.num_heads,
                                     problem.head_dim * sizeof(T), sort.num_images, V::kLanes);
    for_images(shape, sort.first_image, sort.num_images, [&](const Tiling& tiling, dim3 grid, int block) {
      launch(&gather_kernel<T, V::kLanes, V::kVector, decltype(exact)::value>, grid, block, stream, call, sort, tiling,
             static_cast<const T*>(grad_output), static_cast<T*>(grad_value));
    });
  };
  constexpr int kVector = 16 / sizeof(T);
  if constexpr (!std::is_same_v<T, double>) {
    if (problem.head_dim == 32) return run(Variant<32 / kVector, kVector>{}, std::true_type{});
    if (problem.head_dim == 64) return run(Variant<64 / kVector, kVector>{}, std::true_type{});
  }
  if (problem.head_dim % kVector != 0) return run(Variant<kWarp, 1>{}, std::false_type{});
  return run(Variant<8, kVector>{}, std::false_type{});
}

// How many images one pass of the sort takes, and into how many chunks the queries of a head are cut.
inline Sort plan_sort(const Problem& problem, int64_t entry_bytes) {
  STD_TORCH_CHECK(count_buckets(problem.levels) <= kMaxBlocksX - 1,
                  "ms_deform_attn: the levels are too large for the deterministic gradient on CUDA");
  Sort sort;
  sort.buckets = make_buckets(problem.levels);
  const int64_t heads = problem.num_heads, buckets = sort.buckets.count;
  const int64_t image_bytes =
      heads * (problem.num_queries * problem.num_samples() * entry_bytes + 2 * buckets * int64_t{sizeof(unsigned)});
  const int64_t images = std::min(problem.batch, std::max<int64_t>(1, sort_scratch_bytes / image_bytes));
  sort.num_images = static_cast<int>(std::min(images, std::max<int64_t>(1, (int64_t{1} << 24) / heads)));
  const int64_t rows = sort.num_images * heads;
  const int64_t most = std::min(kSortWarps / rows, kSortCounts / (rows * buckets));
  const int64_t warps = (problem.num_queries + kWarp - 1) / kWarp;
  const int64_t chunks = std::min(std::max<int64_t>(1, most), warps);
  sort.chunk_queries = static_cast<int>((warps + chunks - 1) / chunks * kWarp);
  sort.num_chunks = static_cast<int>((problem.num_queries + sort.chunk_queries - 1) / sort.chunk_queries);
  return sort;
}

inline Tensor new_scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

template <typename T>
void run_sorted(const Problem& problem, const Call& call, const Tensor& value, const void* grad_output,
                void* grad_value, cudaStream_t stream) {
  using A = Compute<T>;
  Sort sort = plan_sort(problem, sizeof(Entry<A>));
  const int64_t rows = sort.num_images * problem.num_heads;
  const int64_t count_bytes = rows * sort.num_chunks * sort.buckets.count * int64_t{sizeof(unsigned)};
  Tensor counts = new_scratch(value, count_bytes);
  const Tensor starts = new_scratch(value, rows * (int64_t{sort.buckets.count} + 1) * int64_t{sizeof(unsigned)});
  const Tensor entries =
      new_scratch(value, rows * problem.num_queries * problem.num_samples() * int64_t{sizeof(Entry<A>)});
  sort.counts = static_cast<unsigned*>(counts.mutable_data_ptr());
  sort.starts = static_cast<unsigned*>(starts.mutable_data_ptr());
  sort.entries = entries.mutable_data_ptr();
  const int64_t pass = sort.num_images;
  for (int64_t first = 0; first < problem.batch; first += pass) {
    sort.first_image = first;
    sort.num_images = static_cast<int>(std::min(pass, problem.batch - first));
    torch::stable::zero_(counts);
    const int64_t head_rows = sort.num_images * problem.num_heads;
    const int64_t warps = head_rows * sort.num_chunks;
    const dim3 grid(static_cast<unsigned>((warps * kWarp + kBlock - 1) / kBlock));
    launch(&sort_kernel<T, false>, grid, kBlock, stream, call, sort);
    launch(&scan_kernel, dim3(static_cast<unsigned>(head_rows)), kScanBlock, stream, sort);
    launch(&sort_kernel<T, true>, grid, kBlock, stream, call, sort);
    run_gather<T>(problem, call, sort, grad_output, grad_value, stream);
  }
}

// The two forms of the op share everything but what `points` and `scores` mean.
inline Tensor forward(const Problem& problem, Call call, const Tensor& value, cudaStream_t stream) {
  Tensor out = new_output(value, problem);
  if (problem.empty()) return out;
  for_type(value.scalar_type(), [&](auto element) {
    run_forward<decltype(element)>(problem, call, out.mutable_data_ptr(), stream);
  });
  return out;
}

template <typename T>
void backward(const Problem& problem, const Call& call, const Tensor& value, const Tensor& grad_output,
              bool deterministic, const Tensor& grad_value, Gradients gradients, cudaStream_t stream) {
  constexpr bool kNarrow = sizeof(Compute<T>) != sizeof(T);
  Tensor sums = grad_value;
  if (!deterministic) {
    if (kNarrow)
      sums = torch::stable::new_zeros(value, {problem.batch, problem.num_cells, problem.num_heads, problem.head_dim},
                                      ScalarType::Float);
    else
      torch::stable::zero_(sums);
    gradients.value = sums.mutable_data_ptr();
  }
  // float32 scores can hold the intermediate slopes themselves; others need room of their own.
  const bool scores_fit = !call.sampled && call.scores_float == std::is_same_v<Compute<T>, float>;
  Tensor kept;
  gradients.kept = gradients.scores;
  if (!call.sampled && !scores_fit) {
    const int64_t count = problem.batch * problem.num_queries * problem.num_heads * problem.num_samples();
    kept = new_scratch(value, count * int64_t{sizeof(Compute<T>)});
    gradients.kept = kept.mutable_data_ptr();
  }
  run_backward<T>(problem, call, grad_output.const_data_ptr(), gradients, stream);
  if (deterministic) {
    run_sorted<T>(problem, call, value, grad_output.const_data_ptr(), grad_value.mutable_data_ptr(), stream);
  } else if constexpr (kNarrow) {
    const int64_t count = problem.batch * problem.num_cells * problem.num_heads * problem.head_dim;
    run_round<T>(static_cast<const float*>(sums.const_data_ptr()), grad_value.mutable_data_ptr(), count, stream);
  }
}

inline std::tuple<Tensor, Tensor, Tensor> backward(const Problem& problem, const Call& call, const Tensor& value,
                                                   const Tensor& points, const Tensor& scores,
                                                   const Tensor& grad_output, bool deterministic,
                                                   cudaStream_t stream) {
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_points = torch::stable::empty_like(points);
  Tensor grad_scores = torch::stable::empty_like(scores);
  if (problem.empty()) {
    for (Tensor* gradient : {&grad_value, &grad_points, &grad_scores}) torch::stable::zero_(*gradient);
    return {grad_value, grad_points, grad_scores};
  }
  Gradients gradients;
  gradients.points = grad_points.mutable_data_ptr();
  gradients.scores = grad_scores.mutable_data_ptr();
  for_type(value.scalar_type(), [&](auto element) {
    backward<decltype(element)>(problem, call, value, grad_output, deterministic, grad_value, gradients, stream);
  });
  return {grad_value, grad_points, grad_scores};
}

inline Tensor fused_forward(const Tensor& value_, const std::vector<int64_t>& level_shapes, const Tensor& reference_,
                            const Tensor& offsets_, const Tensor& logits_, cudaStream_t stream) {
  const Problem problem = read_fused_problem(value_, level_shapes, reference_, offsets_, logits_);
  check_counts(problem);
  const Tensor value = aligned(value_), reference = aligned(reference_), offsets = aligned(offsets_),
               logits = aligned(logits_);
  Call call = make_call(problem, value, offsets, logits);
  call.reference = reference.const_data_ptr();
  return forward(problem, call, value, stream);
}

inline std::tuple<Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_output, const Tensor& value_,
                                                         const std::vector<int64_t>& level_shapes,
                                                         const Tensor& reference_, const Tensor& offsets_,
                                                         const Tensor& logits_, bool deterministic,
                                                         cudaStream_t stream) {
  const Problem problem = read_fused_problem(value_, level_shapes, reference_, offsets_, logits_);
  check_counts(problem);
  const Tensor gradient = aligned(read_grad_output(grad_output, value_, problem));
  const Tensor value = aligned(value_), reference = aligned(reference_), offsets = aligned(offsets_),
               logits = aligned(logits_);
  Call call = make_call(problem, value, offsets, logits);
  call.reference = reference.const_data_ptr();
  return backward(problem, call, value, offsets, logits, gradient, deterministic, stream);
}

inline Tensor sampled_forward(const Tensor& value_, const std::vector<int64_t>& level_shapes, const Tensor& locations_,
                              const Tensor& weights_, cudaStream_t stream) {
  const Problem problem = read_sampled_problem(value_, level_shapes, locations_, weights_);
  check_counts(problem);
  const Tensor value = aligned(value_), locations = aligned(locations_), weights = aligned(weights_);
  Call call = make_call(problem, value, locations, weights);
  call.sampled = true;
  return forward(problem, call, value, stream);
}

inline std::tuple<Tensor, Tensor, Tensor> sampled_backward(const Tensor& grad_output, const Tensor& value_,
                                                           const std::vector<int64_t>& level_shapes,
                                                           const Tensor& locations_, const Tensor& weights_,
                                                           bool deterministic, cudaStream_t stream) {
  const Problem problem = read_sampled_problem(value_, level_shapes, locations_, weights_);
  check_counts(problem);
  const Tensor gradient = aligned(read_grad_output(grad_output, value_, problem));
  const Tensor value = aligned(value_), locations = aligned(locations_), weights = aligned(weights_);
  Call call = make_call(problem, value, locations, weights);
  call.sampled = true;
  return backward(problem, call, value, locations, weights, gradient, deterministic, stream);
}

}  // namespace fcache::cuda
