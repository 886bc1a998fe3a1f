// The gradient of value by sorting and gathering: the deterministic way.
//
// The points of one (image, head) are sorted by bucket, the cell of their upper left corner, in a counting sort that is
// stable and uses no returning atomic: a warp counts, and later places, the points of its own chunk of queries in
// order. Then each cell adds up its points in the order they lie in. That order is (32 queries, sample, query),
// whatever the batch and the number of chunks are, so the sums have the same bits in every run.
#pragma once

#include "ms_deform_attn_cuda_device.cuh"

namespace fcache::cuda {

template <typename A>
struct alignas(4 * sizeof(A)) Entry {
  int query;
  A weight, fy, fx;
};

struct Sort {
  Buckets buckets;
  int64_t first_image = 0;  // a pass takes as many images as its scratch has room for
  int num_images = 0;
  int num_chunks = 1;      // per (image, head)
  int chunk_queries = 32;  // a multiple of 32
  unsigned* counts = nullptr;  // [image, head, chunk, bucket]: points of the chunk, then where the next one goes
  unsigned* starts = nullptr;  // [image, head, bucket + 1]: first entry
  void* entries = nullptr;     // [image, head, Q * N] Entry
};

// Counts where kPlace is false, else places. A warp takes one chunk; a lane takes every 32nd query.
template <typename T, bool kPlace>
__global__ void __launch_bounds__(kBlock, 2)
    sort_kernel(const __grid_constant__ Call call, const __grid_constant__ Sort sort) {
  using A = Compute<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t chunk_row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;  // (image, head, chunk)
  const int64_t head_row = chunk_row / sort.num_chunks;
  if (head_row >= int64_t{sort.num_images} * call.num_heads) return;  // whole warps
  const int chunk = static_cast<int>(chunk_row % sort.num_chunks);
  const int head = static_cast<int>(head_row % call.num_heads);
  const int64_t image = sort.first_image + head_row / call.num_heads;
  const int num_samples = call.num_samples;
  unsigned* counts = sort.counts + chunk_row * sort.buckets.count;
  auto* entries = static_cast<Entry<A>*>(sort.entries) + head_row * call.num_queries * num_samples;

  const int64_t first = int64_t{chunk} * sort.chunk_queries;
  const int64_t end = first + sort.chunk_queries < call.num_queries ? first + sort.chunk_queries : call.num_queries;
  for (int64_t start = first; start < end; start += kWarp) {
    const int query = static_cast<int>(start) + lane;
    const bool live = start + lane < end;
    const int64_t row = (image * call.num_queries + query) * call.num_heads + head;
    Softmax<A> softmax = {A(0), A(1)};
    if (kPlace && live) softmax = read_softmax<T, 1>(call, row, 0, num_samples);
    for (int sample = 0; sample < num_samples; ++sample) {
      int bucket = -1;
      Point<A> point = {};
      if (live) {
        point = read_point<T>(call, row, image, query, sample, sample / call.num_points);
        bucket = bucket_of(call.levels, sort.buckets, point.level, point.y, point.x);
      }
      if constexpr (!kPlace) {
        if (bucket >= 0) atomicAdd(counts + bucket, 1u);  // only this warp's; sums of integers have no order
      } else {
        const unsigned peers = __match_any_sync(kFullWarp, bucket);
        const int rank = __popc(peers & ((1u << lane) - 1));
        const unsigned next = bucket >= 0 ? counts[bucket] : 0;
        __syncwarp();
        if (bucket >= 0) {
          if (rank == 0) counts[bucket] = next + __popc(peers);
          const A weight = read_weight<T>(call, softmax, row, num_samples, sample);
          entries[next + rank] = Entry<A>{query, weight, point.fy, point.fx};
        }
        __syncwarp();
      }
    }
  }
}

// Sum over the lanes before this one, and the total of the block, in every thread. `sums` has room for kWarp.
__device__ __forceinline__ unsigned sum_before(unsigned own, unsigned* sums, unsigned* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  unsigned upto = own;
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned below = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += below;
  }
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  unsigned before = 0, all = 0;
  for (int i = 0; i < num_warps; ++i) {
    if (i < warp) before += sums[i];
    all += sums[i];
  }
  __syncthreads();
  *total = all;
  return before + upto - own;
}

constexpr int kScanBlock = 1024;

// Turns the counts of one (image, head) into the places of its entries: by bucket, within one by chunk.
__global__ void __launch_bounds__(kScanBlock) scan_kernel(const __grid_constant__ Sort sort) {
  __shared__ unsigned sums[kWarp];
  const int num_buckets = sort.buckets.count;
  unsigned* counts = sort.counts + int64_t{blockIdx.x} * sort.num_chunks * num_buckets;
  unsigned* starts = sort.starts + int64_t{blockIdx.x} * (int64_t{num_buckets} + 1);
  unsigned carry = 0;
  for (int64_t base = 0; base < num_buckets; base += blockDim.x) {
    const int64_t bucket = base + threadIdx.x;
    unsigned own = 0;
    if (bucket < num_buckets)
      for (int chunk = 0; chunk < sort.num_chunks; ++chunk) own += counts[int64_t{chunk} * num_buckets + bucket];
    unsigned total;
    unsigned next = carry + sum_before(own, sums, &total);
    carry += total;
    if (bucket >= num_buckets) continue;
    starts[bucket] = next;
    for (int chunk = 0; chunk < sort.num_chunks; ++chunk) {
      unsigned& count = counts[int64_t{chunk} * num_buckets + bucket];
      const unsigned points = count;
      count = next;
      next += points;
    }
  }
  if (threadIdx.x == 0) starts[num_buckets] = carry;
}

// Each cell of value adds up what its points hand it. `tiling` walks the cells.
template <typename T, int kLanes, int kVector, bool kExact>
__global__ void __launch_bounds__(kBlock)
    gather_kernel(const __grid_constant__ Call call, const __grid_constant__ Sort sort,
                  const __grid_constant__ Tiling tiling, const T* __restrict__ grad_output,
                  T* __restrict__ grad_value) {
  using A = Compute<T>;
  const int lane = threadIdx.x % kLanes;
  const int head_dim = kExact ? kLanes * kVector : call.head_dim;
  const int stride = call.num_heads * head_dim;  // of a query and of a cell
  const int stride_bytes = stride * static_cast<int>(sizeof(T));
  const int num_units = units_of_block(tiling);
  const int num_buckets = sort.buckets.count;

  for (int number = threadIdx.x / kLanes; number < num_units; number += blockDim.x / kLanes) {
    const Unit unit = unit_at(tiling, number);
    if (!unit.live) continue;
    const int64_t head_row = (unit.image - sort.first_image) * call.num_heads + unit.head;
    const unsigned* starts = sort.starts + head_row * (int64_t{num_buckets} + 1);
    const auto* entries =
        static_cast<const Entry<A>*>(sort.entries) + head_row * call.num_queries * call.num_samples;
    const T* head_gradients = grad_output + (unit.image * call.num_queries) * stride + int64_t{unit.head} * head_dim;
    T* to = grad_value + (unit.image * call.num_cells + unit.place.index) * stride + int64_t{unit.head} * head_dim;

    for (int channel = lane * kVector; channel < head_dim; channel += kLanes * kVector) {
      const char* gradients = reinterpret_cast<const char*>(head_gradients + channel);
      A sum[kVector] = {};
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int bucket =
            first_bucket(call.levels, sort.buckets, unit.place.grid, unit.place.y, unit.place.x, below);
        const unsigned middle = starts[bucket + 1], end = starts[bucket + 2];
        unsigned i = starts[bucket];
#pragma unroll 4
        for (const Entry<A>* at = entries + i; i < end; ++i, ++at) {
          const Entry<A> entry = *at;
          const A share_x = i < middle ? entry.fx : 1 - entry.fx;  // a point of the bucket to the left
          const A share_y = below == 0 ? entry.fy : 1 - entry.fy;
          const A weight = share_y * share_x * entry.weight;
          A gradient[kVector];
          Channels<T, kVector>::unpack(Channels<T, kVector>::load(gradients + int64_t{entry.query} * stride_bytes),
                                       gradient);
#pragma unroll
          for (int k = 0; k < kVector; ++k) sum[k] = fma(weight, gradient[k], sum[k]);
        }
      }
      Channels<T, kVector>::store(to + channel, sum);
    }
  }
}

}  // namespace fcache::cuda
