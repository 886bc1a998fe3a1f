// Multi-scale deformable attention on the CPU, forward and backward: the ops of the fcache library for CPU tensors.
//
// This file is the part that does not depend on the instruction set: it lays out the scratch, orders the queries, cuts
// the work into units and picks a set. The arithmetic is in ms_deform_attn_cpu.inc and what that includes.
//
// Results have the same bits for any number of threads. Forward and the gradients of offsets and logits belong to one
// query each. grad_value of one head is summed by one thread in the order of the queries; with more threads than heads
// it is a pass of its own, cut by level and channel, which leaves every sum in that same order.
#include "ms_deform_attn.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

// GCC can compile one function for another machine than the rest; elsewhere the baseline is what the compiler targets.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FCACHE_HAS_X86_TARGETS 1
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fcache {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

// How many queries ahead their offsets, logits and gradients are fetched: the tiles' order breaks the hardware's guess.
constexpr int64_t kPrefetchQueries = 2;
// Samples of one query that are prepared together at most, unless one head has more.
constexpr int64_t kMostSamples = 512;
// Outputs larger than this are written past the caches: nobody could read them there before they are evicted.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Queries of one unit of work: small enough to balance threads.
constexpr int64_t kQueryBlock = 256;
// Side, in cells of the finest level, of the tiles by which queries are ordered.
constexpr int64_t kTile = 8;
// A thread keeps its scratch between calls unless it is larger than this.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

enum class Element { float32, float16, bfloat16, float64 };
struct Half { uint16_t bits; };
struct Bfloat16 { uint16_t bits; };

constexpr int64_t element_bytes(Element type) {
  return type == Element::float64 ? 8 : type == Element::float32 ? 4 : 2;
}

struct Array {
  void* data = nullptr;
  Element type = Element::float32;
};

enum class Pass {
  forward,
  backward,    // all three gradients, some heads per unit
  parameters,  // gradients of offsets and logits (or locations and weights), a block of queries per unit
  scatter,     // grad_value, a level and vector of channels per unit
};

// One call, as the threads read it.
struct Call {
  Problem problem;
  bool fused, backward, is_double;
  bool streams;  // output is written past the caches
  bool sums_in_place;  // gradients of value are summed in grad_value itself
  Pass pass;
  int64_t heads_per_unit, parts;  // a unit of work is one part (of queries or of cells) of some heads of one image
  Array value, reference, samples, weights;  // samples: offsets or locations; weights: logits or weights
  Array rows;                                // value, or a copy in the compute type whose rows are whole vectors
  int64_t width;                             // numbers from one row to the next
  Array output;                              // backward: grad_output
  Array grad_value, grad_samples, grad_weights;
  const int32_t* order;  // the order of the queries, of each image or (stride 0) of all
  int64_t order_batch_stride;

  bool scatters() const { return pass == Pass::backward || pass == Pass::scatter; }
};

namespace baseline {
#define FCACHE_VECTOR_BYTES 16
constexpr int kVectorBytes = FCACHE_VECTOR_BYTES;
#include "ms_deform_attn_cpu.inc"
#undef FCACHE_VECTOR_BYTES
}  // namespace baseline

#if FCACHE_HAS_X86_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define FCACHE_VECTOR_BYTES 32
constexpr int kVectorBytes = FCACHE_VECTOR_BYTES;
#include "ms_deform_attn_cpu.inc"
#undef FCACHE_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define FCACHE_VECTOR_BYTES 64
constexpr int kVectorBytes = FCACHE_VECTOR_BYTES;
#include "ms_deform_attn_cpu.inc"
#undef FCACHE_VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options
#endif

struct Kernels {
  int64_t (*row_width)(const Call&);
  bool (*reads_value)(const Call&);
  void (*widen_rows)(const Call&, int64_t begin, int64_t end);
  int64_t (*scratch_bytes)(const Call&);
  int64_t vector_bytes;  // of its registers
  void (*run)(const Call&, int64_t begin, int64_t end, char* memory);
};

// The widest set this machine has, or the lower one that FCACHE_CPU_ISA names (for tests and comparisons).
Kernels choose_kernels() {
#if FCACHE_HAS_X86_TARGETS
  const char* wish = std::getenv("FCACHE_CPU_ISA");
  const std::string_view isa = wish ? wish : "";
  STD_TORCH_CHECK(isa.empty() || isa == "avx512" || isa == "avx2" || isa == "baseline",
                  "ms_deform_attn: FCACHE_CPU_ISA must be avx512, avx2 or baseline");
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (isa.empty() || isa == "avx512")) {
    return {avx512::row_width, avx512::reads_value, avx512::widen_rows,
            avx512::scratch_bytes, avx512::kVectorBytes, avx512::run};
  }
  if (has_avx2 && isa != "baseline") {
    return {avx2::row_width,     avx2::reads_value,  avx2::widen_rows,
            avx2::scratch_bytes, avx2::kVectorBytes, avx2::run};
  }
#endif
  return {baseline::row_width, baseline::reads_value, baseline::widen_rows,
          baseline::scratch_bytes, baseline::kVectorBytes, baseline::run};
}

// A thread's scratch. Huge pages matter: gathered rows are spread over more 4 KB pages than the TLB's first level has.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

  char* reserve(int64_t bytes) {
    if (bytes <= capacity_) return memory_;
    release();
    const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = nullptr;
    STD_TORCH_CHECK(posix_memalign(&memory, kHugePage, rounded) == 0, "ms_deform_attn: no memory for ", rounded,
                    " bytes of scratch");
#if defined(MADV_HUGEPAGE)
    madvise(memory, rounded, MADV_HUGEPAGE);  // advice: without it everything still works
#endif
    memory_ = static_cast<char*>(memory);
    capacity_ = rounded;
    return memory_;
  }

  void release_if_large() {
    if (capacity_ > kKeptBytes) release();
  }

 private:
  void release() {
    std::free(memory_);
    memory_ = nullptr;
    capacity_ = 0;
  }

  char* memory_ = nullptr;
  int64_t capacity_ = 0;
};

// Heads of one unit of work, a divisor of H: as many as possible, so that rows are read as wholes, but where a unit
// takes all queries never so many that a thread would be without work.
int64_t heads_per_unit(const Call& call) {
  const Problem& p = call.problem;
  if (call.pass == Pass::scatter) return 1;
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  int64_t most = std::max<int64_t>(1, kMostSamples / p.num_samples());
  if (call.pass == Pass::backward) most = std::min(most, std::max<int64_t>(1, p.batch * p.num_heads / threads));
  int64_t heads = std::min(most, p.num_heads);
  while (p.num_heads % heads != 0) --heads;
  return heads;
}

void run_pass(Call& call, Pass pass, int64_t parts, const Kernels& kernels) {
  call.pass = pass;
  call.parts = parts;
  call.heads_per_unit = heads_per_unit(call);
  const int64_t bytes = kernels.scratch_bytes(call);
  const int64_t sets = call.problem.num_heads / call.heads_per_unit * call.problem.batch;
  torch::stable::parallel_for(0, sets * parts, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    kernels.run(call, begin, end, scratch.reserve(bytes));
    scratch.release_if_large();
  });
}

int64_t query_parts(const Problem& problem) {
  return (problem.num_queries + kQueryBlock - 1) / kQueryBlock;
}

int64_t tile_of(double position, int64_t num_tiles) {  // NaN and points outside go to a border tile
  const double tile = position * static_cast<double>(num_tiles);
  return tile > 0 ? static_cast<int64_t>(std::min(tile, static_cast<double>(num_tiles - 1))) : 0;
}

// Counting sort of one image's queries by the tile that their reference point lies in, odd lines of tiles backwards.
// Neighbours in this order read neighbouring cells of every level, so that most of their rows are in the nearest cache.
template <class A>
void order_queries(const Problem& problem, const A* points, int32_t* order) {
  const int64_t tiles_y = (problem.levels.height[0] + kTile - 1) / kTile;
  const int64_t tiles_x = (problem.levels.width[0] + kTile - 1) / kTile;
  const auto tile = [&](int64_t q) {
    const A* point = points + q * problem.reference_query_stride;
    const int64_t x = tile_of(point[0], tiles_x), y = tile_of(point[1], tiles_y);
    return y * tiles_x + (y % 2 ? tiles_x - 1 - x : x);
  };
  std::vector<int32_t> next(tiles_y * tiles_x + 1, 0);  // where the tile's next query goes
  for (int64_t q = 0; q < problem.num_queries; ++q) ++next[tile(q) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t q = 0; q < problem.num_queries; ++q) order[next[tile(q)]++] = static_cast<int32_t>(q);
}

// The order of the queries of every image; locations given by the caller (no reference points) are left as they come.
std::vector<int32_t> set_order(Call& call) {
  const Problem& p = call.problem;
  const bool per_image = call.fused && p.reference_batch_stride != 0;
  const int64_t count = per_image ? p.batch : 1;
  // The kernels look kPrefetchQueries ahead: behind the last image that is query 0.
  std::vector<int32_t> order(count * p.num_queries + kPrefetchQueries, 0);
  if (call.fused) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * p.reference_batch_stride;
        int32_t* image = order.data() + b * p.num_queries;
        if (call.is_double) {
          order_queries(p, static_cast<const double*>(call.reference.data) + first, image);
        } else {
          order_queries(p, static_cast<const float*>(call.reference.data) + first, image);
        }
      }
    });
  } else {
    std::iota(order.begin(), order.end() - kPrefetchQueries, 0);
  }
  call.order = order.data();
  call.order_batch_stride = per_image ? p.num_queries : 0;
  return order;
}

Array array_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return {tensor.data_ptr(), Element::float32};
    case ScalarType::Double: return {tensor.data_ptr(), Element::float64};
    case ScalarType::Half: return {tensor.data_ptr(), Element::float16};
    case ScalarType::BFloat16: return {tensor.data_ptr(), Element::bfloat16};
    default: STD_TORCH_CHECK(false, "ms_deform_attn: unsupported dtype");
  }
}

Call make_call(const Problem& problem, const Tensor& value, const Tensor& samples, const Tensor& weights) {
  Call call{};
  call.problem = problem;
  call.is_double = value.scalar_type() == ScalarType::Double;
  call.value = array_of(value);
  call.samples = array_of(samples);
  call.weights = array_of(weights);
  return call;
}

// Sets call.rows; returns what they lie in.
Tensor set_rows(Call& call, const Tensor& value, const Kernels& kernels) {
  const Problem& p = call.problem;
  call.width = kernels.row_width(call);
  call.rows = call.value;
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t widest = *std::max_element(p.levels.width, p.levels.width + p.levels.count);
  STD_TORCH_CHECK(p.num_heads * call.width * 8 <= most && p.num_cells + 3 * (widest + 1) <= most,
                  "ms_deform_attn: H * D must stay below 2^28, and S and three lines below 2^31");
  if (kernels.reads_value(call)) return value;
  const int64_t num_rows = p.batch * p.num_cells * p.num_heads;
  Tensor rows = torch::stable::new_empty(value, {num_rows, call.width}, compute_type(value.scalar_type()));
  call.rows = array_of(rows);
  torch::stable::parallel_for(0, num_rows, 1024,
                              [&](int64_t begin, int64_t end) { kernels.widen_rows(call, begin, end); });
  return rows;
}

Tensor run_forward(Call& call, const Tensor& value) {
  Tensor output = new_output(value, call.problem);
  if (call.problem.empty()) return output;
  call.output = array_of(output);
  const Kernels kernels = choose_kernels();
  const Tensor rows = set_rows(call, value, kernels);
  const int64_t row_bytes = call.problem.head_dim * element_bytes(call.output.type);
  call.streams = output.numel() * element_bytes(call.output.type) > kStreamBytes &&
                 call.width == call.problem.head_dim &&
                 row_bytes % kCacheLine == 0 &&
                 reinterpret_cast<uintptr_t>(call.output.data) % kCacheLine == 0;
  const std::vector<int32_t> order = set_order(call);
  run_pass(call, Pass::forward, query_parts(call.problem), kernels);
  return output;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of value, of offsets or locations, of logits or weights

Gradients run_backward(Call& call, const Tensor& grad_output, const Tensor& value, const Tensor& samples,
                       const Tensor& weights) {
  const Problem& problem = call.problem;
  Tensor grad_samples = torch::stable::empty_like(samples), grad_weights = torch::stable::empty_like(weights);
  Tensor grad_value = torch::stable::empty_like(value);
  if (problem.empty()) return {torch::stable::zero_(grad_value), grad_samples, grad_weights};
  const Tensor dense = read_grad_output(grad_output, value, problem);
  call.backward = true;
  call.output = array_of(dense);
  call.grad_value = array_of(grad_value);
  call.grad_samples = array_of(grad_samples);
  call.grad_weights = array_of(grad_weights);
  const std::vector<int32_t> order = set_order(call);
  const Kernels kernels = choose_kernels();
  const Tensor rows = set_rows(call, value, kernels);
  call.sums_in_place = call.grad_value.type == array_of(rows).type && call.width == problem.head_dim &&
                       element_bytes(call.grad_value.type) >= 4;
  if (problem.batch * problem.num_heads >= torch::stable::get_num_threads()) {
    run_pass(call, Pass::backward, 1, kernels);
  } else {
    run_pass(call, Pass::parameters, query_parts(problem), kernels);
    const int64_t vectors = call.width * (call.is_double ? 8 : 4) / kernels.vector_bytes;
    run_pass(call, Pass::scatter, problem.levels.count * vectors, kernels);
  }
  return {grad_value, grad_samples, grad_weights};
}

Call fused_call(const Tensor& value, const std::vector<int64_t>& level_shapes, const Tensor& reference_points,
                const Tensor& offsets, const Tensor& logits) {
  const Problem problem = read_fused_problem(value, level_shapes, reference_points, offsets, logits);
  Call call = make_call(problem, value, offsets, logits);
  call.fused = true;
  call.reference = array_of(reference_points);
  return call;
}

Call sampled_call(const Tensor& value, const std::vector<int64_t>& level_shapes, const Tensor& locations,
                  const Tensor& weights) {
  return make_call(read_sampled_problem(value, level_shapes, locations, weights), value, locations, weights);
}

// ---- the ops ----

Tensor ms_deform_attn(const Tensor& value, std::vector<int64_t> level_shapes, const Tensor& reference_points,
                      const Tensor& offsets, const Tensor& logits) {
  Call call = fused_call(value, level_shapes, reference_points, offsets, logits);
  return run_forward(call, value);
}

// `deterministic` asks for nothing here: this backward always is.
Gradients ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_shapes,
                                  const Tensor& reference_points, const Tensor& offsets, const Tensor& logits,
                                  bool /*deterministic*/) {
  Call call = fused_call(value, level_shapes, reference_points, offsets, logits);
  return run_backward(call, grad_output, value, offsets, logits);
}

Tensor ms_deform_attn_sampled(const Tensor& value, std::vector<int64_t> level_shapes, const Tensor& locations,
                              const Tensor& weights) {
  Call call = sampled_call(value, level_shapes, locations, weights);
  return run_forward(call, value);
}

Gradients ms_deform_attn_sampled_backward(const Tensor& grad_output, const Tensor& value,
                                          std::vector<int64_t> level_shapes, const Tensor& locations,
                                          const Tensor& weights, bool /*deterministic*/) {
  Call call = sampled_call(value, level_shapes, locations, weights);
  return run_backward(call, grad_output, value, locations, weights);
}

}  // namespace
}  // namespace fcache

STABLE_TORCH_LIBRARY_IMPL(fcache, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&fcache::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&fcache::ms_deform_attn_backward));
  m.impl("ms_deform_attn_sampled", TORCH_BOX(&fcache::ms_deform_attn_sampled));
  m.impl("ms_deform_attn_sampled_backward", TORCH_BOX(&fcache::ms_deform_attn_sampled_backward));
}
