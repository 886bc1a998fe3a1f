// What limits deformable attention on this core, without the op: caches, stores past them, and the loop that sums rows.
//
//   g++ -std=c++17 -O3 -march=native -mprefer-vector-width=512 tests/bench/cpu_limits.cpp -o cpu_limits
//   ./cpu_limits
//
// Needs AVX-512. The least of several rounds, in CPU time of one thread.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

typedef float Vec __attribute__((vector_size(64)));

double now_s() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

template <class Work>
double least_s(int rounds, Work work) {
  double least = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const double start = now_s();
    work();
    least = std::min(least, now_s() - start);
  }
  return least;
}

char* take(int64_t bytes) {
  char* memory = static_cast<char*>(std::aligned_alloc(4096, bytes));
  std::memset(memory, 0, bytes);
  return memory;
}

__attribute__((noinline)) Vec read_all(const char* from, int64_t bytes) {
  Vec sums[8] = {};
  for (int64_t i = 0; i < bytes; i += 512) {
    for (int v = 0; v < 8; ++v) sums[v] += *reinterpret_cast<const Vec*>(from + i + 64 * v);
  }
  return (sums[0] + sums[1] + (sums[2] + sums[3])) + (sums[4] + sums[5] + (sums[6] + sums[7]));
}

void show_reads() {
  for (int64_t bytes : {int64_t{32} << 10, int64_t{1} << 20, int64_t{8} << 20, int64_t{32} << 20, int64_t{128} << 20}) {
    char* memory = take(bytes);
    const int repeats = static_cast<int>(std::max<int64_t>(1, (int64_t{64} << 20) / bytes));
    Vec sum = {};
    const double s = least_s(7, [&] {
      for (int i = 0; i < repeats; ++i) {
        asm volatile("" ::: "memory");  // or the compiler reads once for all repeats
        sum += read_all(memory, bytes);
      }
    });
    std::printf("reads in order, %7ld KB: %6.1f GB/s\n", static_cast<long>(bytes >> 10), 1e-9 * bytes * repeats / s);
    if (sum[0] != 0) std::abort();
    std::free(memory);
  }
}

void show_streams() {
  const int64_t bytes = int64_t{46} << 20;  // the extractor's output
  char* memory = take(bytes);
  const double streamed = least_s(7, [&] {
    for (int64_t i = 0; i < bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(memory + i), __m512i{});
    _mm_sfence();
  });
  const double stored = least_s(7, [&] { std::memset(memory, 1, bytes); });
  std::printf("46 MB past the caches: %.2f ms; through them: %.2f ms\n", 1e3 * streamed, 1e3 * stored);
  std::free(memory);
}

struct Sample { int32_t upper, lower; float weight[4]; };

// The sum over `count` samples of four rows each, kVectors registers a row: what no forward can do without.
template <int kVectors>
__attribute__((noinline)) void gather(const Sample* samples, int count, const char* rows, float* out) {
  Vec upper[kVectors] = {}, lower[kVectors] = {};
  for (int i = 0; i < count; ++i) {
    const Vec* above = reinterpret_cast<const Vec*>(rows + samples[i].upper);
    const Vec* below = reinterpret_cast<const Vec*>(rows + samples[i].lower);
    for (int v = 0; v < kVectors; ++v) {
      upper[v] += samples[i].weight[0] * above[v];
      lower[v] += samples[i].weight[2] * below[v];
      upper[v] += samples[i].weight[1] * above[kVectors + v];
      lower[v] += samples[i].weight[3] * below[kVectors + v];
    }
  }
  for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vec*>(out)[v] = upper[v] + lower[v];
}

// All samples of a call, at random cells of a region of `region_bytes`.
template <int kVectors>
void show_gather(const char* name, int64_t region_bytes, int heads, int samples_per_head) {
  constexpr int kQueries = 7581, kKept = 1024;
  constexpr int64_t kRow = 64 * kVectors;
  char *rows = take(region_bytes + 2 * kRow), *out = take(4096);
  Sample* samples = reinterpret_cast<Sample*>(take(int64_t{kKept} * samples_per_head * sizeof(Sample) / 4096 * 4096 + 4096));
  for (int i = 0; i < kKept * samples_per_head; ++i) {
    samples[i].upper = static_cast<int32_t>(std::rand() % (region_bytes / kRow) * kRow);
    samples[i].lower = static_cast<int32_t>(std::rand() % (region_bytes / kRow) * kRow);
  }
  const double s = least_s(7, [&] {
    for (int i = 0; i < kQueries * heads; ++i) {
      gather<kVectors>(samples + i % kKept * samples_per_head, samples_per_head, rows, reinterpret_cast<float*>(out));
    }
  });
  std::printf("%s, all its sums from %ld KB: %.2f ms\n", name, static_cast<long>(region_bytes >> 10), 1e3 * s);
  std::free(rows);
  std::free(out);
  std::free(samples);
}

}  // namespace

int main() {
  show_reads();
  show_streams();
  for (int64_t kb : {16, 512}) {
    show_gather<2>("pixel decoder", kb << 10, 8, 12);
    show_gather<4>("extractor", kb << 10, 24, 4);
  }
}
