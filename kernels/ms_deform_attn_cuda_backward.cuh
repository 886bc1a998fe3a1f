// The backward CUDA kernel: gradients of offsets and logits (or of locations and weights), and of value by atomic
// additions. Without the latter it has a fixed order of additions, and the sorted gather follows it.
#pragma once

#include "ms_deform_attn_cuda_device.cuh"

namespace fcache::cuda {

struct Gradients {
  void* points = nullptr;  // as Call::points
  void* scores = nullptr;  // as Call::scores
  void* value = nullptr;   // [B, S, H, D] in the compute type, zero at first; null: not wanted here
  void* kept = nullptr;    // [B, Q, H, N] in the compute type, scratch where N is not known at compile time
};

__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(a), "f"(b),
               "f"(c), "f"(d)
               : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

template <int kVector, typename A>
__device__ __forceinline__ void add_atomically(A* to, const A (&x)[kVector]) {
  if constexpr (std::is_same_v<A, float> && kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) add_four(to + i, x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) atomicAdd(to + i, x[i]);
  }
}

// The share of one lane in one sample: products of the output's gradient with the corners' channels.
template <typename T, int kVector, typename A>
__device__ __forceinline__ void add_products(const Cells<T, kVector>& cells, const A (&gradient)[kVector],
                                             A (&products)[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    A channels[kVector];
    Channels<T, kVector>::unpack(cells.corner[c], channels);
#pragma unroll
    for (int i = 0; i < kVector; ++i) products[c] = fma(gradient[i], channels[i], products[c]);
  }
}

template <int kVector, typename A>
__device__ __forceinline__ void add_to_value(A* channels, const Corners<A>& corners, int cell_stride,
                                             const A (&gradient)[kVector]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (!is_inside(corners.weight[c])) continue;
    A shares[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) shares[i] = corners.weight[c] * gradient[i];
    const int cell = corners.cell + (c / 2) * corners.width + c % 2;
    add_atomically(channels + int64_t{cell} * cell_stride, shares);
  }
}

// Stores what one sample's point gets; returns what its weight gets.
template <typename T, typename A>
__device__ __forceinline__ A finish_sample(const Call& call, const Gradients& gradients, const Point<A>& point,
                                           const Corners<A>& corners, A weight, const A (&sums)[4], int64_t index,
                                           bool live) {
  A s[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) s[c] = is_inside(corners.weight[c]) ? sums[c] : A(0);  // 0 * inf is not 0
  const A gx = 1 - point.fx, gy = 1 - point.fy;
  A dx = weight * (gy * (s[1] - s[0]) + point.fy * (s[3] - s[2]));
  A dy = weight * (gx * (s[2] - s[0]) + point.fx * (s[3] - s[1]));
  if (call.sampled) {
    dx *= call.levels.width[point.level];
    dy *= call.levels.height[point.level];
  }
  if (live) store_pair<T>(gradients.points, call.points_float, index, dx, dy);
  return gy * (gx * s[0] + point.fx * s[1]) + point.fy * (gx * s[2] + point.fx * s[3]);
}

template <typename T, int kLanes, int kVector, int kLevels, int kPoints>
__global__ void __launch_bounds__(kBlock, 0 < kPoints && kLevels < 4 ? 3 : 2)
    backward_kernel(const __grid_constant__ Call call, const __grid_constant__ Tiling tiling,
                    const T* __restrict__ grad_output, const __grid_constant__ Gradients gradients) {
  using A = Compute<T>;
  constexpr bool kExact = kPoints > 0;
  constexpr int kSlots = kExact ? (kLevels * kPoints + kLanes - 1) / kLanes : 1;
  const int lane = threadIdx.x % kLanes;
  const int num_points = kExact ? kPoints : call.num_points;
  const int num_samples = kExact ? kLevels * kPoints : call.num_samples;
  const int head_dim = kExact ? kLanes * kVector : call.head_dim;
  const int cell_stride = call.num_heads * head_dim;
  const int cell_bytes = cell_stride * static_cast<int>(sizeof(T));
  const int num_units = units_of_block(tiling);

  for (int number = threadIdx.x / kLanes; number < num_units; number += blockDim.x / kLanes) {
    const Unit unit = unit_at(tiling, number);
    const int query = unit.place.index;
    const int64_t row = (unit.image * call.num_queries + query) * call.num_heads + unit.head;
    const int64_t level_zero = (unit.image * call.num_cells) * cell_stride + int64_t{unit.head} * head_dim;
    const T* value = static_cast<const T*>(call.value) + level_zero;
    const Softmax<A> softmax = read_softmax<T, kLanes>(call, row, lane, num_samples);

    A gradient[kVector] = {};
    if constexpr (kExact)
      Channels<T, kVector>::unpack(Channels<T, kVector>::load(grad_output + row * head_dim + lane * kVector), gradient);

    A kept_weight[kSlots], kept_slope[kSlots];
    A total = 0;  // sum over samples of weight times its gradient
#pragma unroll
    for (int base = 0; base < num_samples; base += kLanes) {
      const int sample = base + lane;
      const bool own_live = sample < num_samples;
      Point<A> point = {};
      A weight = 0;
      if (own_live) {
        point = read_point<T>(call, row, unit.image, query, sample, sample / num_points);
        weight = read_weight<T>(call, softmax, row, num_samples, sample);
      }
      const Corners<A> own = own_live ? corners_of(call.levels, point, weight) : no_corners<A>();
      A sums[4] = {};
      const int count = num_samples - base < kLanes ? num_samples - base : kLanes;
#pragma unroll 1
      for (int k = 0; k < count; ++k) {
        const auto corners = from_lane<kLanes, kPoints>(own, call.levels, base, k);
        A products[4] = {};
        for (int first = 0; first < head_dim; first += kLanes * kVector) {
          const int channel = first + lane * kVector;
          const bool live_channel = kExact || channel < head_dim;
          if constexpr (!kExact) {
            if (live_channel)
              Channels<T, kVector>::unpack(Channels<T, kVector>::load(grad_output + row * head_dim + channel),
                                           gradient);
          }
          const auto cells = load_cells<T, kVector>(value + channel, corners, cell_bytes, live_channel);
          if (live_channel) add_products<T, kVector>(cells, gradient, products);
          if (gradients.value != nullptr && unit.live && live_channel)
            add_to_value<kVector>(static_cast<A*>(gradients.value) + level_zero + channel, corners, cell_stride,
                                  gradient);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const A sum = group_sum<kLanes>(products[c]);
          sums[c] = lane == k ? sum : sums[c];
        }
      }
      if (own_live) {
        const A slope = finish_sample<T>(call, gradients, point, own, weight, sums, row * num_samples + sample,
                                         unit.live);
        total += weight * slope;
        if constexpr (kExact) {
          kept_weight[base / kLanes] = weight;
          kept_slope[base / kLanes] = slope;
        } else if (unit.live) {
          if (call.sampled)
            store_scalar<T>(gradients.scores, call.scores_float, row * num_samples + sample, slope);
          else
            static_cast<A*>(gradients.kept)[row * num_samples + sample] = slope;
        }
      }
    }

    total = group_sum<kLanes>(total);
    if (!unit.live) continue;
    if (!kExact && call.sampled) continue;
#pragma unroll
    for (int base = 0; base < num_samples; base += kLanes) {
      const int sample = base + lane;
      if (sample >= num_samples) continue;
      A weight, slope;
      if constexpr (kExact) {
        weight = kept_weight[base / kLanes];
        slope = kept_slope[base / kLanes];
      } else {
        weight = read_weight<T>(call, softmax, row, num_samples, sample);
        slope = static_cast<const A*>(gradients.kept)[row * num_samples + sample];
      }
      const A found = call.sampled ? slope : weight * (slope - total);
      store_scalar<T>(gradients.scores, call.scores_float, row * num_samples + sample, found);
    }
  }
}

// Rounds the sums to value's type.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    round_kernel(const float* __restrict__ from, T* __restrict__ to, int64_t count) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < count; i += step) to[i] = static_cast<T>(from[i]);
}

}  // namespace fcache::cuda
