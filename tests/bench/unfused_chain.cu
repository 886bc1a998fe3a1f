// The sampling kernel that projects around Deformable DETR run, written here from its description: one thread per
// channel, which repeats all index arithmetic; softmax, locations and casts are separate PyTorch calls; the backward
// has a block per (query, head), adds to value's gradient channel by channel, and reduces each sample's slopes through
// shared memory. A yardstick for bench_ms_deform_attn.py, float32 only, as those kernels are under autocast.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace {

using torch::stable::Tensor;

struct Sizes {
  int64_t batch, cells, heads, channels, queries, levels, points;
};

Sizes sizes_of(const Tensor& value, const Tensor& locations) {
  return {value.size(0),     value.size(1),     value.size(2),    value.size(3),
          locations.size(1), locations.size(3), locations.size(4)};
}

struct Bilinear {
  float ly, lx;
  int y, x, height, width;
  bool touches;
};

__device__ Bilinear place(const int64_t* shapes, int64_t level, const float* location) {
  Bilinear at;
  at.height = static_cast<int>(shapes[2 * level]);
  at.width = static_cast<int>(shapes[2 * level + 1]);
  const float y = location[1] * at.height - 0.5f, x = location[0] * at.width - 0.5f;
  at.touches = y > -1 && x > -1 && y < at.height && x < at.width;
  at.y = static_cast<int>(floorf(y));
  at.x = static_cast<int>(floorf(x));
  at.ly = y - at.y;
  at.lx = x - at.x;
  return at;
}

__device__ float corner(const float* level, const Bilinear& at, int dy, int dx, int64_t stride) {
  const int y = at.y + dy, x = at.x + dx;
  if (y < 0 || x < 0 || y >= at.height || x >= at.width) return 0;
  return level[(int64_t{y} * at.width + x) * stride];
}

__global__ void sample(const float* value, const int64_t* shapes, const int64_t* starts, const float* locations,
                       const float* weights, float* out, Sizes n, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t channel = i % n.channels, row = i / n.channels, head = row % n.heads;
  const int64_t image = row / n.heads / n.queries, stride = n.heads * n.channels;
  float sum = 0;
  for (int64_t level = 0; level < n.levels; ++level) {
    const float* cells = value + (image * n.cells + starts[level]) * stride + head * n.channels + channel;
    for (int64_t point = 0; point < n.points; ++point) {
      const int64_t s = (row * n.levels + level) * n.points + point;
      const Bilinear at = place(shapes, level, locations + 2 * s);
      if (!at.touches) continue;
      const float top = (1 - at.lx) * corner(cells, at, 0, 0, stride) + at.lx * corner(cells, at, 0, 1, stride);
      const float bottom = (1 - at.lx) * corner(cells, at, 1, 0, stride) + at.lx * corner(cells, at, 1, 1, stride);
      sum += weights[s] * ((1 - at.ly) * top + at.ly * bottom);
    }
  }
  out[i] = sum;
}

__global__ void sample_backward(const float* grad, const float* value, const int64_t* shapes, const int64_t* starts,
                                const float* locations, const float* weights, float* grad_value,
                                float* grad_locations, float* grad_weights, Sizes n) {
  extern __shared__ float shared[];  // [channels, 3]
  const int64_t row = blockIdx.x, channel = threadIdx.x, head = row % n.heads;
  const int64_t image = row / n.heads / n.queries, stride = n.heads * n.channels;
  const float g = grad[row * n.channels + channel];
  for (int64_t level = 0; level < n.levels; ++level) {
    const int64_t base = (image * n.cells + starts[level]) * stride + head * n.channels + channel;
    for (int64_t point = 0; point < n.points; ++point) {
      const int64_t s = (row * n.levels + level) * n.points + point;
      const Bilinear at = place(shapes, level, locations + 2 * s);
      const float a = weights[s];
      float slopes[3] = {};
      if (at.touches) {
        float v[4];
        for (int c = 0; c < 4; ++c) {
          v[c] = corner(value + base, at, c / 2, c % 2, stride);
          const int y = at.y + c / 2, x = at.x + c % 2;
          if (y < 0 || x < 0 || y >= at.height || x >= at.width) continue;
          const float share = (c / 2 ? at.ly : 1 - at.ly) * (c % 2 ? at.lx : 1 - at.lx);
          atomicAdd(grad_value + base + (int64_t{y} * at.width + x) * stride, a * share * g);
        }
        slopes[0] = a * g * at.width * ((1 - at.ly) * (v[1] - v[0]) + at.ly * (v[3] - v[2]));
        slopes[1] = a * g * at.height * ((1 - at.lx) * (v[2] - v[0]) + at.lx * (v[3] - v[1]));
        slopes[2] = g * ((1 - at.ly) * ((1 - at.lx) * v[0] + at.lx * v[1]) +
                         at.ly * ((1 - at.lx) * v[2] + at.lx * v[3]));
      }
      for (int k = 0; k < 3; ++k) shared[3 * channel + k] = slopes[k];
      __syncthreads();
      if (n.channels <= 32) {
        if (channel == 0)
          for (int64_t other = 1; other < n.channels; ++other)
            for (int k = 0; k < 3; ++k) shared[k] += shared[3 * other + k];
      } else {
        for (int64_t half = n.channels / 2; half > 0; half /= 2) {
          if (channel < half)
            for (int k = 0; k < 3; ++k) shared[3 * channel + k] += shared[3 * (channel + half) + k];
          __syncthreads();
        }
      }
      if (channel == 0) {
        grad_locations[2 * s] = shared[0];
        grad_locations[2 * s + 1] = shared[1];
        grad_weights[s] = shared[2];
      }
      __syncthreads();
    }
  }
}

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

const float* read(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
const int64_t* read_ints(const Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); }

Tensor forward(Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) {
  const Sizes n = sizes_of(value, locations);
  Tensor out = torch::stable::new_empty(value, {n.batch, n.queries, n.heads * n.channels});
  const int64_t count = n.batch * n.queries * n.heads * n.channels;
  constexpr int kThreads = 1024;
  sample<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream_of(value)>>>(
      read(value), read_ints(shapes), read_ints(starts), read(locations), read(weights),
      static_cast<float*>(out.mutable_data_ptr()), n, count);
  STD_TORCH_CHECK(cudaGetLastError() == cudaSuccess, "sample did not start");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor value, Tensor shapes, Tensor starts, Tensor locations,
                                            Tensor weights) {
  const Sizes n = sizes_of(value, locations);
  Tensor grad_value = torch::stable::empty_like(value);
  torch::stable::zero_(grad_value);
  Tensor grad_locations = torch::stable::empty_like(locations), grad_weights = torch::stable::empty_like(weights);
  const unsigned threads = static_cast<unsigned>(n.channels);
  sample_backward<<<static_cast<unsigned>(n.batch * n.queries * n.heads), threads, 3 * threads * sizeof(float),
                    stream_of(value)>>>(
      read(grad), read(value), read_ints(shapes), read_ints(starts), read(locations), read(weights),
      static_cast<float*>(grad_value.mutable_data_ptr()), static_cast<float*>(grad_locations.mutable_data_ptr()),
      static_cast<float*>(grad_weights.mutable_data_ptr()), n);
  STD_TORCH_CHECK(cudaGetLastError() == cudaSuccess, "sample_backward did not start");
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY(fcache_unfused, m) {
  m.def("forward(Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) -> (Tensor, "
      "Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fcache_unfused, CUDA, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
