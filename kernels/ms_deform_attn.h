// Multi-scale deformable attention: what the CPU and the CUDA library share. Host code only.
//
// The ops and their schemas are defined in Python (fcache/ops); a library only implements them. Python checks the
// arguments first and words its errors for people. The checks here repeat what memory safety needs, because
// torch.ops.fcache.* can be called directly.
//
// Only LibTorch's stable ABI is used, so that one library serves every torch from 2.10 on and every Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

namespace fcache {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kMaxLevels = 8;

// Coordinates are formed in float32, which counts pixels exactly up to 2^24.
constexpr int64_t kMaxSide = int64_t{1} << 23;

// The levels of one value tensor: plain numbers, so that a CUDA kernel can take them by value.
struct Levels {
  int count = 0;
  int height[kMaxLevels] = {};
  int width[kMaxLevels] = {};
  int start[kMaxLevels] = {};  // first cell of the level in the S cells of value
};

// All sizes of one call, and how far apart reference points lie (0: shared by every image, or by every level).
struct Problem {
  int64_t batch = 0;        // B
  int64_t num_cells = 0;    // S
  int64_t num_heads = 0;    // H
  int64_t head_dim = 0;     // D
  int64_t num_queries = 0;  // Q
  int64_t num_points = 0;   // P
  int64_t reference_batch_stride = 0;
  int64_t reference_query_stride = 0;
  int64_t reference_level_stride = 0;
  Levels levels;

  int64_t num_samples() const { return levels.count * num_points; }  // L * P, of one query and head
  bool empty() const { return batch == 0 || num_queries == 0; }
};

inline bool is_value_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
         type == ScalarType::Double;
}

// Everything is computed in this type; results are rounded once, at the store.
inline ScalarType compute_type(ScalarType value_type) {
  return value_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_tensor(const char* name, const Tensor& tensor, const Tensor& value,
                         std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(tensor.device() == value.device(), "ms_deform_attn: ", name, " is on another device than value");
  STD_TORCH_CHECK(tensor.is_contiguous(), "ms_deform_attn: ", name, " is not contiguous");
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(sizes.size()), "ms_deform_attn: ", name, " has ", tensor.dim(),
                  " dimensions, expected ", sizes.size());
  int64_t axis = 0;
  for (int64_t size : sizes) {
    STD_TORCH_CHECK(tensor.size(axis) == size, "ms_deform_attn: ", name, " has size ", tensor.size(axis), " in axis ",
                    axis, ", expected ", size);
    ++axis;
  }
}

inline void check_parameter_type(const char* name, const Tensor& tensor, const Tensor& value) {
  STD_TORCH_CHECK(tensor.scalar_type() == value.scalar_type() || tensor.scalar_type() == ScalarType::Float,
                  "ms_deform_attn: ", name, " must be float32 or have the dtype of value");
}

inline Levels read_levels(const std::vector<int64_t>& level_shapes, int64_t num_cells) {
  STD_TORCH_CHECK(!level_shapes.empty() && level_shapes.size() % 2 == 0 && level_shapes.size() <= 2 * kMaxLevels,
                  "ms_deform_attn: level_shapes must be h0, w0, h1, w1, .. of 1 to ", kMaxLevels, " levels, got ",
                  level_shapes.size(), " numbers");
  Levels levels;
  levels.count = static_cast<int>(level_shapes.size() / 2);
  int64_t start = 0;
  for (int l = 0; l < levels.count; ++l) {
    const int64_t height = level_shapes[2 * l], width = level_shapes[2 * l + 1];
    STD_TORCH_CHECK(0 < height && height <= kMaxSide && 0 < width && width <= kMaxSide, "ms_deform_attn: level ", l,
                    " has the impossible shape ", height, " x ", width);
    levels.height[l] = static_cast<int>(height);
    levels.width[l] = static_cast<int>(width);
    levels.start[l] = static_cast<int>(start);
    start += height * width;
    STD_TORCH_CHECK(start <= num_cells, "ms_deform_attn: the levels hold more than the ", num_cells, " cells of value");
  }
  STD_TORCH_CHECK(start == num_cells, "ms_deform_attn: value has ", num_cells, " cells, its levels hold ", start);
  return levels;
}

// `samples` is what says where to read, [B, Q, H, L, P, 2]: the offsets of the fused form, or the locations.
inline Problem read_problem(const Tensor& value, const std::vector<int64_t>& level_shapes, const char* samples_name,
                            const Tensor& samples) {
  STD_TORCH_CHECK(is_value_type(value.scalar_type()),
                  "ms_deform_attn: value must be float32, float16, bfloat16 or float64");
  STD_TORCH_CHECK(value.dim() == 4 && value.is_contiguous(),
                  "ms_deform_attn: value must be contiguous with 4 dimensions [B, S, H, D]");
  STD_TORCH_CHECK(samples.dim() == 6, "ms_deform_attn: ", samples_name, " has ", samples.dim(),
                  " dimensions, expected 6: [B, Q, H, L, P, 2]");
  Problem problem;
  problem.batch = value.size(0);
  problem.num_cells = value.size(1);
  problem.num_heads = value.size(2);
  problem.head_dim = value.size(3);
  problem.num_queries = samples.size(1);
  problem.num_points = samples.size(4);
  STD_TORCH_CHECK(problem.num_heads > 0 && problem.head_dim > 0 && problem.num_points > 0,
                  "ms_deform_attn: H, D and P must be at least 1");
  // Rows of one head are counted in 32 bits; one row more than S is the row of zeros outside the levels.
  STD_TORCH_CHECK((problem.num_cells + 1) * problem.head_dim <= std::numeric_limits<int32_t>::max(),
                  "ms_deform_attn: S * D of value must stay below 2^31");
  problem.levels = read_levels(level_shapes, problem.num_cells);
  check_tensor(samples_name, samples, value,
               {problem.batch, problem.num_queries, problem.num_heads, problem.levels.count, problem.num_points, 2});
  check_parameter_type(samples_name, samples, value);
  return problem;
}

inline Problem read_fused_problem(const Tensor& value, const std::vector<int64_t>& level_shapes,
                                  const Tensor& reference_points, const Tensor& offsets, const Tensor& logits) {
  Problem problem = read_problem(value, level_shapes, "offsets", offsets);
  check_tensor("logits", logits, value,
               {problem.batch, problem.num_queries, problem.num_heads, problem.num_samples()});
  check_parameter_type("logits", logits, value);

  STD_TORCH_CHECK(reference_points.dim() == 4, "ms_deform_attn: reference_points has ", reference_points.dim(),
                  " dimensions, expected 4: [1 or B, Q, 1 or L, 2]");
  STD_TORCH_CHECK(reference_points.scalar_type() == compute_type(value.scalar_type()),
                  "ms_deform_attn: reference_points must be float32 (float64 where value is)");
  const int64_t batch = reference_points.size(0) == 1 ? 1 : problem.batch;
  const int64_t levels = reference_points.size(2) == 1 ? 1 : problem.levels.count;
  check_tensor("reference_points", reference_points, value, {batch, problem.num_queries, levels, 2});
  problem.reference_query_stride = 2 * levels;
  problem.reference_batch_stride = batch == 1 ? 0 : problem.num_queries * problem.reference_query_stride;
  problem.reference_level_stride = levels == 1 ? 0 : 2;
  return problem;
}

inline Problem read_sampled_problem(const Tensor& value, const std::vector<int64_t>& level_shapes,
                                    const Tensor& locations, const Tensor& weights) {
  const Problem problem = read_problem(value, level_shapes, "locations", locations);
  check_tensor("weights", weights, value,
               {problem.batch, problem.num_queries, problem.num_heads, problem.levels.count, problem.num_points});
  check_parameter_type("weights", weights, value);
  return problem;
}

// The gradient that autograd hands over may be an expanded or transposed view; the kernels read it as [B, Q, H * D].
inline Tensor read_grad_output(const Tensor& grad_output, const Tensor& value, const Problem& problem) {
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(),
                  "ms_deform_attn: grad_output must have the dtype of value");
  const Tensor dense = torch::stable::contiguous(grad_output);
  check_tensor("grad_output", dense, value,
               {problem.batch, problem.num_queries, problem.num_heads * problem.head_dim});
  return dense;
}

inline Tensor new_output(const Tensor& value, const Problem& problem) {
  return torch::stable::new_empty(value,
                                  {problem.batch, problem.num_queries, problem.num_heads * problem.head_dim});
}

}  // namespace fcache
