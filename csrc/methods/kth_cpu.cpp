// The k-th largest, in plain loops that the compiler makes vectors of. Compiled once for every instruction set, in a namespace of
// its name.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "csrc/methods/kth.h"

namespace isentrope::methods {
namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 512;  // keys at once: they and their flags stay in the first-level cache

template <class T>
struct Numbers {
  const T* x;           // [n]
  const uint8_t* mask;  // [n] or null
  int64_t n;
};

// keys [count] of the numbers from begin on; 0 where they are not marked.
template <class T>
void read_keys(const Numbers<T>& p, int64_t begin, int64_t count, OrderedBits<T>* __restrict keys) {
  const T* x = p.x + begin;
  if (p.mask == nullptr) {
    for (int64_t i = 0; i < count; ++i) keys[i] = ordered(x[i]);
    return;
  }
  const uint8_t* mask = p.mask + begin;
  for (int64_t i = 0; i < count; ++i) {
    const OrderedBits<T> key = ordered(x[i]);
    keys[i] = mask[i] != 0 ? key : 0;
  }
}

// Keys in [low, high] go to band, where there is one; those above are counted, and those within.
template <class T>
void split(const Numbers<T>& p, OrderedBits<T> low, OrderedBits<T> high, OrderedBits<T>* band, int64_t* above,
           int64_t* within) {
  OrderedBits<T> keys[kBlock];
  uint8_t inside[kBlock];
  int64_t size = 0;
  for (int64_t begin = 0; begin < p.n; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.n - begin);
    read_keys(p, begin, count, keys);
    if (count < kBlock) std::fill(keys + count, keys + kBlock, OrderedBits<T>(0));
    int32_t over = 0, in = 0;
    for (int64_t i = 0; i < kBlock; ++i) over += keys[i] > high ? 1 : 0;
    for (int64_t i = 0; i < kBlock; ++i) inside[i] = keys[i] - low <= high - low ? 1 : 0;
    for (int64_t i = 0; i < kBlock; ++i) in += inside[i];
    *above += over;
    *within += in;
    if (band == nullptr || in == 0) continue;
    for (int64_t w = 0; w < kBlock; w += 8) {
      uint64_t word;
      std::memcpy(&word, inside + w, 8);
      for (; word != 0; word &= word - 1) band[size++] = keys[w + __builtin_ctzll(word) / 8];
    }
  }
}

template <class T>
void search(KthSearch* s) {
  using K = OrderedBits<T>;
  const auto more = [](K a, K b) { return a > b; };
  const Numbers<T> p{static_cast<const T*>(s->x), reinterpret_cast<const uint8_t*>(s->mask), s->n};
  const int64_t marked = s->mask == nullptr ? s->n : count_marked_on_cpu(s->mask, s->n);
  // The k-th key among those of the band, which are not set up yet; false where it is not between them.
  const auto look = [&](K low, K high) {
    const std::unique_ptr<K[]> band(low == high ? nullptr
                                                : new K[s->n]);  // pages that nothing is written to cost nothing
    int64_t above = 0, within = 0;
    split(p, low, high, band.get(), &above, &within);
    const int64_t place = s->k - above;
    if (place < 1 || place > within) return false;
    s->key = high, s->equal = place;
    if (band == nullptr) return true;
    std::nth_element(band.get(), band.get() + place - 1, band.get() + within, more);
    const K key = band[place - 1];
    for (int64_t i = 0; i < place - 1; ++i) s->equal -= band[i] > key ? 1 : 0;
    s->key = key;
    return true;
  };
  // A key in 128 and at most 16384: the band then holds a few per cent of all, and the sample takes a tenth of the time.
  constexpr int64_t kMostSamples = 16384, kKeysPerSample = 128;
  const int64_t samples = std::min(kMostSamples, s->n / kKeysPerSample);
  if (samples >= 32) {
    const std::unique_ptr<K[]> sample(new K[samples]);
    int64_t size = 0;
    for (int64_t i = 0; i < samples; ++i) {
      // Once in each of as many stretches, at places that no period of the numbers follows.
      const auto jitter = static_cast<uint64_t>(static_cast<uint32_t>(i * 2654435761u)) * static_cast<uint64_t>(s->n);
      const int64_t at = (i * s->n + static_cast<int64_t>(jitter >> 32)) / samples;
      if (p.mask == nullptr || p.mask[at] != 0) sample[size++] = ordered(p.x[at]);
    }
    std::sort(sample.get(), sample.get() + size, more);
    // The place of the rank in a random sample errs by √(size q (1 − q)): three times that, and one.
    const double q = static_cast<double>(s->k) / static_cast<double>(marked), place = q * static_cast<double>(size);
    const double margin = 3 * std::sqrt(place * (1 - q)) + 1;
    const auto first = static_cast<int64_t>(place - margin), last = static_cast<int64_t>(place + margin) + 1;
    if (size >= 16 && look(last < size ? sample[last] : K(1), place >= margin ? sample[first] : ~K(0))) return;
  }
  look(K(1), ~K(0));
}

}  // namespace

void kth_largest_on_cpu(KthSearch* s) { s->wide ? search<double>(s) : search<float>(s); }

int64_t count_marked_on_cpu(const bool* mask, int64_t n) {
  const auto* m = reinterpret_cast<const uint8_t*>(mask);
  int64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += 128) {  // 255 fit into a byte
    const int64_t end = std::min<int64_t>(begin + 128, n);
    uint8_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sum = static_cast<uint8_t>(sum + (m[i] != 0 ? 1 : 0));
    total += sum;
  }
  return total;
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::methods
