// Device side of the CUDA kernels that forward and backward share: a call's arguments, loads, one sample.
//
// A group of lanes, a power of two within a warp, computes one (image, query, head). Each lane holds kVector channels,
// 16 bytes of value, and sets up every kLanes-th sample; the group hands samples round by shuffles. Every lane of a
// warp stays in every loop to its end, so all shuffles have the full mask.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include <type_traits>

#include "ms_deform_attn_cuda_order.cuh"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace fcache::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kBlock = 256;

template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What every kernel is told. Passed by value as a __grid_constant__, so that levels indexed at run time are read from
// the constant bank and not from a copy in local memory.
struct Call {
  const void* value = nullptr;      // [B, S, H, D]
  const void* points = nullptr;     // [B, Q, H, N, 2]  offsets, or locations where `sampled`
  const void* scores = nullptr;     // [B, Q, H, N]     logits, or weights where `sampled`
  const void* reference = nullptr;  // [1|B, Q, 1|L, 2]
  bool points_float = false;        // float32 whatever value is
  bool scores_float = false;
  bool sampled = false;
  int num_cells = 0, num_queries = 0, num_heads = 0, head_dim = 0, num_points = 0;
  int num_samples = 0;  // N = L * P
  int64_t reference_batch_stride = 0, reference_query_stride = 0, reference_level_stride = 0;
  Levels levels;
};

// How the (query, head) or (cell, head) pairs of an image are dealt to blocks: blockIdx.x is (tile, part of the heads),
// the heads varying fastest, so that blocks which run together share the cache lines of all heads; blockIdx.y is the
// image.
struct Tiling {
  Order order;
  int num_positions = 0;
  int tile = 1;             // positions of a block
  int heads_log2 = 0;       // log2 of the heads of a block
  int head_parts = 1;       // blocks that share a tile
  int num_tiles = 1;
  int64_t first_image = 0;  // a launch has at most 65535
};

struct Unit {
  int64_t image;
  int head;
  bool live;  // lanes beyond the last position compute it again and store nothing
  Place place;
};

__device__ __forceinline__ Unit unit_at(const Tiling& tiling, int number) {
  const int tile = tiling.num_tiles - 1 - static_cast<int>(blockIdx.x) / tiling.head_parts;  // coarse levels first
  const int part = static_cast<int>(blockIdx.x) % tiling.head_parts;
  const int64_t position = int64_t{tile} * tiling.tile + (number >> tiling.heads_log2);
  Unit unit;
  unit.image = tiling.first_image + blockIdx.y;
  unit.head = (part << tiling.heads_log2) + (number & ((1 << tiling.heads_log2) - 1));
  unit.live = position < tiling.num_positions;
  unit.place = place_at(tiling.order, unit.live ? static_cast<int>(position) : tiling.num_positions - 1);
  return unit;
}

__device__ __forceinline__ int units_of_block(const Tiling& tiling) { return tiling.tile << tiling.heads_log2; }

__device__ __forceinline__ float low_half(unsigned word, BFloat16) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(unsigned word, BFloat16) { return __uint_as_float(word & 0xffff0000u); }
__device__ __forceinline__ float low_half(unsigned word, Half) {
  return static_cast<float>(Half(static_cast<unsigned short>(word & 0xffffu), Half::from_bits()));
}
__device__ __forceinline__ float high_half(unsigned word, Half) {
  return static_cast<float>(Half(static_cast<unsigned short>(word >> 16), Half::from_bits()));
}

template <typename T>
__device__ __forceinline__ unsigned bits_of(float x) {
  return static_cast<T>(x).x;
}

// kVector channels as they lie in memory: 16 bytes, or one channel where a head is no multiple of 16 bytes.
template <typename T, int kVector>
struct Channels {
  static constexpr bool kWide = kVector * sizeof(T) == 16;
  using Raw = std::conditional_t<kWide, uint4, T>;

  static __device__ __forceinline__ Raw load(const void* from) { return *static_cast<const Raw*>(from); }

  // Zeros, unread, where not `wanted`. In PTX because the compiler loads into other registers and then copies.
  static __device__ __forceinline__ Raw load_if(bool wanted, const void* from) {
    Raw raw = {};
#ifdef __CUDA_ARCH__
    if constexpr (kWide) {
      asm("{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, %4, 0;\n\t"
          "@wanted ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%5];\n\t}"
          : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w)
          : "r"(static_cast<unsigned>(wanted)), "l"(__cvta_generic_to_global(from)));
      return raw;
    }
#endif
    if (wanted) raw = load(from);
    return raw;
  }

  static __device__ __forceinline__ void unpack(const Raw& raw, Compute<T> (&to)[kVector]) {
    if constexpr (!kWide) {
      to[0] = static_cast<Compute<T>>(raw);
    } else if constexpr (std::is_same_v<T, double>) {
      to[0] = __hiloint2double(raw.y, raw.x);
      to[1] = __hiloint2double(raw.w, raw.z);
    } else {
      const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (std::is_same_v<T, float>) {
          to[i] = __uint_as_float(words[i]);
        } else {
          to[2 * i] = low_half(words[i], T{});
          to[2 * i + 1] = high_half(words[i], T{});
        }
      }
    }
  }

  static __device__ __forceinline__ void store(T* to, const Compute<T> (&from)[kVector]) {
    if constexpr (!kWide) {
      *to = static_cast<T>(from[0]);
    } else if constexpr (std::is_same_v<T, double>) {
      *reinterpret_cast<double2*>(to) = double2{from[0], from[1]};
    } else if constexpr (std::is_same_v<T, float>) {
      *reinterpret_cast<float4*>(to) = float4{from[0], from[1], from[2], from[3]};
    } else {
      unsigned words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = bits_of<T>(from[2 * i]) | bits_of<T>(from[2 * i + 1]) << 16;
      *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
    }
  }
};

template <typename A>
struct Pair {
  A x, y;
};

template <typename T>
__device__ __forceinline__ Compute<T> load_scalar(const void* data, bool is_float, int64_t index) {
  using A = Compute<T>;
  return is_float ? static_cast<A>(static_cast<const float*>(data)[index])
                  : static_cast<A>(static_cast<const T*>(data)[index]);
}

template <typename T>
__device__ __forceinline__ Pair<Compute<T>> load_pair(const void* data, bool is_float, int64_t index) {
  using A = Compute<T>;
  if (is_float) {
    const float2 pair = static_cast<const float2*>(data)[index];
    return {static_cast<A>(pair.x), static_cast<A>(pair.y)};
  }
  if constexpr (sizeof(T) == 2) {
    const unsigned word = static_cast<const unsigned*>(data)[index];
    return {low_half(word, T{}), high_half(word, T{})};
  } else {
    return {static_cast<A>(static_cast<const T*>(data)[2 * index]),
            static_cast<A>(static_cast<const T*>(data)[2 * index + 1])};
  }
}

template <typename T>
__device__ __forceinline__ void store_scalar(void* data, bool is_float, int64_t index, Compute<T> x) {
  if (is_float)
    static_cast<float*>(data)[index] = static_cast<float>(x);
  else
    static_cast<T*>(data)[index] = static_cast<T>(x);
}

template <typename T>
__device__ __forceinline__ void store_pair(void* data, bool is_float, int64_t index, Compute<T> x, Compute<T> y) {
  if (is_float) {
    static_cast<float2*>(data)[index] = float2{static_cast<float>(x), static_cast<float>(y)};
  } else if constexpr (sizeof(T) == 2) {
    static_cast<unsigned*>(data)[index] = bits_of<T>(x) | bits_of<T>(y) << 16;
  } else {
    static_cast<T*>(data)[2 * index] = static_cast<T>(x);
    static_cast<T*>(data)[2 * index + 1] = static_cast<T>(y);
  }
}

// A point of one level: the cell of its upper left corner, and how far beyond that it lies.
template <typename A>
struct Point {
  int level, y, x;
  A fy, fx;
};

// `row` counts (image, query, head).
template <typename T>
__device__ __forceinline__ Point<Compute<T>> read_point(const Call& call, int64_t row, int64_t image, int query,
                                                        int sample, int level) {
  using A = Compute<T>;
  const A width = static_cast<A>(call.levels.width[level]), height = static_cast<A>(call.levels.height[level]);
  Pair<A> at = load_pair<T>(call.points, call.points_float, row * call.num_samples + sample);
  if (call.sampled) {
    at = {at.x * width, at.y * height};
  } else {
    const A* reference = static_cast<const A*>(call.reference) + image * call.reference_batch_stride +
                         query * call.reference_query_stride + level * call.reference_level_stride;
    at = {fma(reference[0], width, at.x), fma(reference[1], height, at.y)};
  }
  // Two cells outside touches nothing. fmax also turns NaN into that.
  const A x = fmin(fmax(at.x - A(0.5), A(-2)), width + 1), y = fmin(fmax(at.y - A(0.5), A(-2)), height + 1);
  const A left = floor(x), top = floor(y);
  return {level, static_cast<int>(top), static_cast<int>(left), y - top, x - left};
}

// The weight of a corner outside its level: minus zero, which no corner inside has, see corner_weight. It stands for
// "do not read" in the same register that is handed round anyway.
__device__ __forceinline__ bool is_inside(float weight) { return __float_as_uint(weight) != 0x80000000u; }
__device__ __forceinline__ bool is_inside(double weight) {
  return __double_as_longlong(weight) != static_cast<long long>(0x8000000000000000ull);
}

template <typename A>
__device__ __forceinline__ A corner_weight(bool inside, A share, A weight) {
  return inside ? fma(share, weight, A(0)) : -A(0);  // adding zero turns minus zero into zero
}

template <typename A>
struct Corners {
  A weight[4];  // of (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)
  int cell;     // of (y, x), among all levels; only meaningful where that corner or a neighbour is inside
  int width;    // cells to the corner below
};

// `weight` is a factor of all four, 1 for plain bilinear shares.
template <typename A>
__device__ __forceinline__ Corners<A> corners_of(const Levels& levels, const Point<A>& point, A weight) {
  const int width = levels.width[point.level], height = levels.height[point.level];
  const bool left = 0 <= point.x && point.x < width, right = -1 <= point.x && point.x + 1 < width;
  const bool top = 0 <= point.y && point.y < height, bottom = -1 <= point.y && point.y + 1 < height;
  const A gx = 1 - point.fx, gy = 1 - point.fy;
  Corners<A> corners;
  corners.weight[0] = corner_weight(top && left, gy * gx, weight);
  corners.weight[1] = corner_weight(top && right, gy * point.fx, weight);
  corners.weight[2] = corner_weight(bottom && left, point.fy * gx, weight);
  corners.weight[3] = corner_weight(bottom && right, point.fy * point.fx, weight);
  const unsigned cell = static_cast<unsigned>(levels.start[point.level]) +
                        static_cast<unsigned>(point.y) * static_cast<unsigned>(width) +
                        static_cast<unsigned>(point.x);  // wraps only for points that touch nothing
  corners.cell = static_cast<int>(cell);
  corners.width = width;
  return corners;
}

template <typename A>
__device__ __forceinline__ Corners<A> no_corners() {
  return {{-A(0), -A(0), -A(0), -A(0)}, 0, 0};
}

// What lane `source` of each group holds. With kPoints known every group is at the same level, whose width need not be
// handed round.
template <int kLanes, int kPoints, typename A>
__device__ __forceinline__ Corners<A> from_lane(const Corners<A>& own, const Levels& levels, int base, int source) {
  Corners<A> corners;
#pragma unroll
  for (int c = 0; c < 4; ++c) corners.weight[c] = __shfl_sync(kFullWarp, own.weight[c], source, kLanes);
  corners.cell = __shfl_sync(kFullWarp, own.cell, source, kLanes);
  if constexpr (kPoints > 0)
    corners.width = levels.width[(base + source) / kPoints];
  else
    corners.width = __shfl_sync(kFullWarp, own.width, source, kLanes);
  return corners;
}

template <int kLanes, typename A>
__device__ __forceinline__ A group_sum(A x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

template <int kLanes, typename A>
__device__ __forceinline__ A group_max(A x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

// exp(logit - peak) * scale is the softmax. A NaN among the logits makes scale NaN.
template <typename A>
struct Softmax {
  A peak, scale;
};

template <typename T, int kLanes>
__device__ __forceinline__ Softmax<Compute<T>> read_softmax(const Call& call, int64_t row, int lane, int num_samples) {
  using A = Compute<T>;
  if (call.sampled) return {A(0), A(1)};
  A peak = -INFINITY, sum = 0;
#pragma unroll
  for (int s = lane; s < num_samples; s += kLanes)
    peak = fmax(peak, load_scalar<T>(call.scores, call.scores_float, row * num_samples + s));
  peak = group_max<kLanes>(peak);
#pragma unroll
  for (int s = lane; s < num_samples; s += kLanes)
    sum += exp(load_scalar<T>(call.scores, call.scores_float, row * num_samples + s) - peak);
  return {peak, 1 / group_sum<kLanes>(sum)};
}

template <typename T>
__device__ __forceinline__ Compute<T> read_weight(const Call& call, const Softmax<Compute<T>>& softmax, int64_t row,
                                                  int num_samples, int sample) {
  const Compute<T> score = load_scalar<T>(call.scores, call.scores_float, row * num_samples + sample);
  return call.sampled ? score : exp(score - softmax.peak) * softmax.scale;
}

// The four corners' channels of one lane; zeros outside, unread.
template <typename T, int kVector>
struct Cells {
  typename Channels<T, kVector>::Raw corner[4];
};

// `channels` are the lane's in cell 0 of the image; `cell_bytes` fits 32 bits, which saves a 64-bit multiplication.
template <typename T, int kVector, typename A>
__device__ __forceinline__ Cells<T, kVector> load_cells(const T* channels, const Corners<A>& corners, int cell_bytes,
                                                        bool live_channel) {
  const char* top = reinterpret_cast<const char*>(channels) + int64_t{corners.cell} * cell_bytes;
  const char* bottom = top + int64_t{corners.width} * cell_bytes;
  Cells<T, kVector> cells;
#pragma unroll
  for (int c = 0; c < 4; ++c)
    cells.corner[c] = Channels<T, kVector>::load_if(live_channel && is_inside(corners.weight[c]),
                                                    (c < 2 ? top : bottom) + (c % 2) * cell_bytes);
  return cells;
}

}  // namespace fcache::cuda
