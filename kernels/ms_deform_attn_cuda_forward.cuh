// The forward CUDA kernel.
#pragma once

#include "ms_deform_attn_cuda_device.cuh"

namespace fcache::cuda {

// kLevels and kPoints of 0 stand for any number, and any head_dim; otherwise head_dim is kLanes * kVector.
template <typename T, int kLanes, int kVector, int kLevels, int kPoints>
__global__ void __launch_bounds__(kBlock, std::is_same_v<T, double> ? 2 : kPoints > 0 ? 4 : 3)
    forward_kernel(const __grid_constant__ Call call, const __grid_constant__ Tiling tiling, T* __restrict__ out) {
  using A = Compute<T>;
  constexpr bool kExact = kPoints > 0;
  const int lane = threadIdx.x % kLanes;
  const int num_points = kExact ? kPoints : call.num_points;
  const int num_samples = kExact ? kLevels * kPoints : call.num_samples;
  const int head_dim = kExact ? kLanes * kVector : call.head_dim;
  const int64_t cell_stride = int64_t{call.num_heads} * head_dim;
  const int cell_bytes = call.num_heads * head_dim * static_cast<int>(sizeof(T));
  const int num_units = units_of_block(tiling);

  for (int number = threadIdx.x / kLanes; number < num_units; number += blockDim.x / kLanes) {
    const Unit unit = unit_at(tiling, number);
    const int query = unit.place.index;
    const int64_t row = (unit.image * call.num_queries + query) * call.num_heads + unit.head;
    const T* value = static_cast<const T*>(call.value) + unit.image * call.num_cells * cell_stride +
                     int64_t{unit.head} * head_dim;
    const Softmax<A> softmax = read_softmax<T, kLanes>(call, row, lane, num_samples);

    for (int first = 0; first < head_dim; first += kLanes * kVector) {
      const int channel = first + lane * kVector;
      const bool live_channel = kExact || channel < head_dim;
      A sum[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[i] = 0 * softmax.scale;  // NaN logits show where all points are outside

#pragma unroll
      for (int base = 0; base < num_samples; base += kLanes) {
        Corners<A> own = no_corners<A>();
        if (base + lane < num_samples) {
          const int sample = base + lane;
          const auto point = read_point<T>(call, row, unit.image, query, sample, sample / num_points);
          own = corners_of(call.levels, point, read_weight<T>(call, softmax, row, num_samples, sample));
        }
        const int count = num_samples - base < kLanes ? num_samples - base : kLanes;
#pragma unroll 2
        for (int k = 0; k < count; ++k) {
          const auto corners = from_lane<kLanes, kPoints>(own, call.levels, base, k);
          const auto cells = load_cells<T, kVector>(value + channel, corners, cell_bytes, live_channel);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            A channels[kVector];
            Channels<T, kVector>::unpack(cells.corner[c], channels);
#pragma unroll
            for (int i = 0; i < kVector; ++i) sum[i] = fma(corners.weight[c], channels[i], sum[i]);
          }
        }
      }
      if (unit.live && live_channel) Channels<T, kVector>::store(out + row * head_dim + channel, sum);
    }
  }
}

}  // namespace fcache::cuda
