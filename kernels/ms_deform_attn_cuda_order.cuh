// Index arithmetic of the CUDA kernels: in which order cells and queries are walked, and the keys that samples are
// sorted by. Plain integers on host and device, so that tests can run through all of it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "ms_deform_attn.h"

namespace fcache::cuda {

// Quotients of numbers below 2^31 by one divisor, without a division (Granlund and Montgomery 1994, figure 4.1).
struct Divisor {
  uint32_t magic = 1;
  uint32_t shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    magic = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __host__ __device__ int quotient(int number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    return static_cast<int>((static_cast<uint32_t>((uint64_t{n} * magic) >> 32) + n) >> shift);
  }
};

constexpr int kStripRows = 8;

// One grid of cells, walked in strips of eight rows, column by column within a strip: 64 cells in a row of that order
// are a compact 8 x 8 tile, whatever the sides of the grid are, so that the cells they read overlap in L1.
struct Grid {
  int start = 0;  // its first cell, and first position
  int width = 1;
  int last_strip = 0;  // number of the last strip, which may have fewer rows
  int last_rows = 1;
  int strip_cells = 1;  // of a strip that is not the last
  Divisor by_strip_cells;
  Divisor by_last_rows;
};

struct Order {
  int num_grids = 0;
  Grid grids[kMaxLevels];
};

struct Place {
  int grid, y, x;
  int index;  // of the cell, row by row over all grids
};

inline Grid make_grid(int start, int height, int width) {
  Grid grid;
  grid.start = start;
  grid.width = width;
  grid.last_strip = (height - 1) / kStripRows;
  grid.last_rows = height - grid.last_strip * kStripRows;
  grid.strip_cells = std::min(height, kStripRows) * width;
  grid.by_strip_cells = Divisor(static_cast<uint32_t>(grid.strip_cells));
  grid.by_last_rows = Divisor(static_cast<uint32_t>(grid.last_rows));
  return grid;
}

// Where the position-th step of the walk stands.
__host__ __device__ inline Place place_at(const Order& order, int position) {
  int number = 0;
  for (int i = 1; i < order.num_grids; ++i) number = position >= order.grids[i].start ? i : number;
  const Grid& grid = order.grids[number];
  const int cell = position - grid.start;
  const int strip = grid.by_strip_cells.quotient(cell);
  const int in_strip = cell - strip * grid.strip_cells;
  const bool last = strip == grid.last_strip;
  const int x = last ? grid.by_last_rows.quotient(in_strip) : in_strip / kStripRows;
  const int y = strip * kStripRows + in_strip - x * (last ? grid.last_rows : kStripRows);
  return {number, y, x, grid.start + y * grid.width + x};
}

inline Order order_of_cells(const Levels& levels) {
  Order order;
  order.num_grids = levels.count;
  for (int l = 0; l < levels.count; ++l)
    order.grids[l] = make_grid(levels.start[l], levels.height[l], levels.width[l]);
  return order;
}

// The order in which queries are computed. The op does not say where queries stand; where their number fits what the
// models do, they are walked in tiles of that grid, otherwise one after the other. Only speed depends on it.
inline Order order_of_queries(const Levels& levels, int num_cells, int num_queries) {
  if (num_queries == num_cells) return order_of_cells(levels);  // encoder: every cell asks
  Order order;
  order.num_grids = 1;
  for (int l = 0; l < levels.count; ++l) {  // injector: the cells of one level ask
    if (num_queries != levels.height[l] * levels.width[l]) continue;
    order.grids[0] = make_grid(0, levels.height[l], levels.width[l]);
    return order;
  }
  // Extractor: the cells of a pyramid (twice, once and half the only level's sides) ask.
  const int height = levels.height[0], width = levels.width[0];
  const int half_height = (height + 1) / 2, half_width = (width + 1) / 2;
  const int64_t cells = int64_t{height} * width;
  if (levels.count == 1 && num_queries == 5 * cells + int64_t{half_height} * half_width) {
    order.num_grids = 3;
    order.grids[0] = make_grid(0, 2 * height, 2 * width);
    order.grids[1] = make_grid(static_cast<int>(4 * cells), height, width);
    order.grids[2] = make_grid(static_cast<int>(5 * cells), half_height, half_width);
    return order;
  }
  order.grids[0] = make_grid(0, 1, num_queries);
  return order;
}

// Sort keys: the cell that a point's upper left corner lies in, with a border row above and a border column to the
// left of each level for points whose upper left corner is outside but another is not.
struct Buckets {
  int count = 0;
  int start[kMaxLevels] = {};
};

inline int64_t count_buckets(const Levels& levels) {
  int64_t count = 0;
  for (int l = 0; l < levels.count; ++l) count += int64_t{levels.height[l] + 1} * (levels.width[l] + 1);
  return count;
}

inline Buckets make_buckets(const Levels& levels) {
  Buckets buckets;
  for (int l = 0; l < levels.count; ++l) {
    buckets.start[l] = buckets.count;
    buckets.count += (levels.height[l] + 1) * (levels.width[l] + 1);
  }
  return buckets;
}

// -1 for a point that touches no cell of the level.
__host__ __device__ inline int bucket_of(const Levels& levels, const Buckets& buckets, int level, int y, int x) {
  const int height = levels.height[level], width = levels.width[level];
  if (y < -1 || y >= height || x < -1 || x >= width) return -1;
  return buckets.start[level] + (y + 1) * (width + 1) + x + 1;
}

// A cell takes part in the points of two pairs of neighbouring buckets: this one and the next, for points whose upper
// corners are one row above the cell (`below` = 0) or in its row (1).
__host__ __device__ inline int first_bucket(const Levels& levels, const Buckets& buckets, int level, int y, int x,
                                            int below) {
  return buckets.start[level] + (y + below) * (levels.width[level] + 1) + x;
}

}  // namespace fcache::cuda
