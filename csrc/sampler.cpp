#include "toolprm/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

// One copy of a loop a generation of processors, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TOOLPRM_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define TOOLPRM_CLONES
#endif

namespace toolprm {

double uniform(std::uint64_t seed, std::uint32_t candidate, std::uint32_t position, std::uint32_t round,
               std::uint32_t lane) {
  std::array<std::uint32_t, 4> x{candidate, position, round, lane};
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * x[0], b = std::uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<std::uint32_t>(b >> 32) ^ x[1] ^ key0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ x[3] ^ key1, static_cast<std::uint32_t>(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  const std::uint64_t bits = (std::uint64_t{x[0]} << 32 | x[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

namespace {

constexpr std::size_t kChunk = 512; // weights that are summed before a draw looks at single ones

// out[i] = exp((values[i] - top) * scale), for exponents of 0 or less, within 1e-15 relatively; 0 below e^-708. Plain
// arithmetic, so that the compiler turns it into vectors: five times as fast as std::exp.
TOOLPRM_CLONES void exponentials(const float *values, std::size_t count, double top, double scale, double *out) {
  constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  constexpr double kShift = 0x1.8p52; // adding it leaves the nearest whole number in the lowest bits
  for (std::size_t i = 0; i < count; ++i) {
    const double exact = (static_cast<double>(values[i]) - top) * scale;
    const double x = exact < -708.0 ? -708.0 : exact;
    const double shifted = x * kLog2e + kShift, whole = shifted - kShift;
    const double r = (x - whole * kLn2High) - whole * kLn2Low;
    double p = 1.0 / 6227020800.0; // Taylor's, to r^13: |r| is below 0.35
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const auto power = std::bit_cast<double>((std::bit_cast<std::uint64_t>(shifted) + 1023) << 52);
    out[i] = exact < -708.0 ? 0.0 : p * power;
  }
}

TOOLPRM_CLONES double sum_of(const double *values, std::size_t count) {
  std::array<double, 8> sums{};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t k = 0; k < 8; ++k)
      sums[k] += values[i + k];
  double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  for (; i < count; ++i)
    sum += values[i];
  return sum;
}

// The largest value; NaN where one is.
TOOLPRM_CLONES float largest(const float *values, std::size_t count) {
  float top = -std::numeric_limits<float>::infinity();
  int broken = 0;
  for (std::size_t i = 0; i < count; ++i) {
    top = values[i] > top ? values[i] : top;
    broken |= values[i] != values[i];
  }
  return broken ? std::numeric_limits<float>::quiet_NaN() : top;
}

// The logits of the legal tokens, in ascending order of ids.
class Legal {
public:
  Legal(const Logits &logits, const Mask &mask) : mask_(mask) {
    values.reserve(mask.count);
    if (!mask.words) {
      for (TokenId id : mask.few)
        values.push_back(logits.values[place(logits, id)]);
      return;
    }
    words_ = *mask.words;
    for (TokenId id : mask.few)
      set_bit(words_, id);
    for (std::size_t w = 0; w < words_.size(); ++w) {
      const auto bits = static_cast<std::uint32_t>(words_[w]);
      if (bits == 0)
        continue;
      const std::size_t first = w * 32, last = first + 31 - static_cast<std::size_t>(std::countl_zero(bits));
      if (!logits.ids.empty() || last >= logits.values.size()) {
        for (std::uint32_t left = bits; left; left &= left - 1)
          values.push_back(logits.values[place(logits, static_cast<TokenId>(w * 32) + std::countr_zero(left))]);
      } else if (bits == ~std::uint32_t{0}) {
        values.insert(values.end(), logits.values.begin() + static_cast<std::ptrdiff_t>(first),
                      logits.values.begin() + static_cast<std::ptrdiff_t>(first + 32));
      } else {
        for (std::uint32_t left = bits; left; left &= left - 1)
          values.push_back(logits.values[first + static_cast<std::size_t>(std::countr_zero(left))]);
      }
    }
  }

  // The id of the value at an index.
  TokenId id(std::size_t index) const {
    if (words_.empty())
      return mask_.few[index];
    std::size_t w = 0;
    for (;; ++w) {
      const auto here = static_cast<std::size_t>(std::popcount(static_cast<std::uint32_t>(words_[w])));
      if (index < here)
        break;
      index -= here;
    }
    auto left = static_cast<std::uint32_t>(words_[w]);
    for (; index > 0; --index)
      left &= left - 1;
    return static_cast<TokenId>(w * 32) + std::countr_zero(left);
  }

  std::vector<float> values;

private:
  static std::size_t place(const Logits &logits, TokenId id) {
    std::size_t at = static_cast<std::size_t>(id);
    if (!logits.ids.empty()) {
      const auto found = std::lower_bound(logits.ids.begin(), logits.ids.end(), id);
      at = found != logits.ids.end() && *found == id ? static_cast<std::size_t>(found - logits.ids.begin())
                                                     : logits.values.size();
    }
    if (at >= logits.values.size())
      throw std::invalid_argument("there are " + std::to_string(logits.values.size()) + " logits, but token " +
                                  std::to_string(id) + " is legal");
    return at;
  }

  const Mask &mask_;
  MaskWords words_; // of all legal tokens, unless the mask has them one by one
};

double checked_top(const std::vector<float> &values) {
  const float top = largest(values.data(), values.size());
  if (std::isnan(top))
    throw std::domain_error("the model's logits are not numbers (NaN)");
  if (!std::isfinite(top))
    throw std::domain_error("no legal token has a finite logit");
  return static_cast<double>(top);
}

// Weights exp((value - top) / temperature), with their sums a chunk.
struct Weights {
  std::vector<double> values, chunks;
  double total = 0;

  Weights(const std::vector<float> &logits, double top, double temperature) : values(logits.size()) {
    exponentials(logits.data(), logits.size(), top, 1 / temperature, values.data());
    for (std::size_t i = 0; i < values.size(); i += kChunk)
      chunks.push_back(sum_of(values.data() + i, std::min(kChunk, values.size() - i)));
    for (double chunk : chunks)
      total += chunk;
  }

  // The first index up to which more than `height` is heaped up.
  std::size_t at(double height) const {
    double sum = 0;
    std::size_t chunk = 0;
    while (chunk + 1 < chunks.size() && sum + chunks[chunk] <= height)
      sum += chunks[chunk++];
    for (std::size_t i = chunk * kChunk; i < values.size(); ++i)
      if ((sum += values[i]) > height && values[i] > 0)
        return i;
    std::size_t last = values.size() - 1; // rounding leaves none beyond the height: the last one with any weight
    while (last > 0 && values[last] <= 0)
      --last;
    return last;
  }
};

} // namespace

void sample(const Logits &logits, const Mask &mask, double temperature, std::span<const double> uniforms,
            TokenId *tokens, double *logprobs) {
  const Legal legal(logits, mask);
  const double top = checked_top(legal.values);
  const Weights plain(legal.values, top, 1.0);
  const double log_total = std::log(plain.total); // less top, which may be too large to add it to
  if (temperature <= 0) {
    const auto best = std::find(legal.values.begin(), legal.values.end(), static_cast<float>(top));
    const TokenId id = legal.id(static_cast<std::size_t>(best - legal.values.begin()));
    std::fill_n(tokens, uniforms.size(), id);
    std::fill_n(logprobs, uniforms.size(), -log_total);
    return;
  }
  const Weights heated = temperature == 1.0 ? Weights(plain) : Weights(legal.values, top, temperature);
  for (std::size_t i = 0; i < uniforms.size(); ++i) {
    const std::size_t at = heated.at(uniforms[i] * heated.total);
    tokens[i] = legal.id(at);
    logprobs[i] = static_cast<double>(legal.values[at]) - top - log_total;
  }
}

std::size_t likeliest(const Logits &logits, const Mask &mask, std::size_t most, TokenId *tokens, double *logprobs) {
  const Legal legal(logits, mask);
  const double top = checked_top(legal.values);
  const double log_total = std::log(Weights(legal.values, top, 1.0).total);
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < legal.values.size(); ++i)
    if (std::isfinite(legal.values[i])) // what has no chance is no continuation
      order.push_back(i);
  const std::size_t count = std::min(most, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      return legal.values[a] != legal.values[b] ? legal.values[a] > legal.values[b] : a < b;
                    });
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = legal.id(order[i]);
    logprobs[i] = static_cast<double>(legal.values[order[i]]) - top - log_total;
  }
  return count;
}

std::size_t sample_distinct(const Logits &logits, const Mask &mask, double temperature,
                            std::span<const double> uniforms, std::span<const double> gumbel_uniforms,
                            const Perturbed &parent, TokenId *tokens, double *logprobs, Perturbed *perturbed) {
  if (!(temperature > 0))
    throw std::invalid_argument("different tokens are drawn at temperatures above 0");
  Legal legal(logits, mask);
  const double top = checked_top(legal.values);
  const std::vector<float> own = legal.values;
  const double log_total = std::log(Weights(own, top, 1.0).total);

  double from = top; // of the weights; they are begun anew where what is left of them gets lost in rounding
  Weights weights(legal.values, from, temperature);
  const double log_all = std::log(weights.total);
  double log_rest = 0;               // logarithm of the share that was not drawn yet
  std::vector<std::size_t> excluded; // drawn since the weights were made, ascending
  double excluded_weight = 0;
  std::size_t count = 0;
  for (; count < std::min(uniforms.size(), own.size()); ++count) {
    double rest = weights.total - excluded_weight;
    if (rest < 1e-6 * weights.total) {
      for (std::size_t at : excluded)
        legal.values[at] = -std::numeric_limits<float>::infinity();
      excluded.clear();
      excluded_weight = 0;
      from = static_cast<double>(largest(legal.values.data(), legal.values.size()));
      if (!std::isfinite(from))
        break; // what is left has no chance at all
      weights = Weights(legal.values, from, temperature);
      rest = weights.total;
    }
    log_rest = (from - top) / temperature + std::log(rest) - log_all;
    double height = uniforms[count] * rest;
    // Heaps of what was drawn are stepped over, in ascending order.
    std::size_t at = weights.at(height);
    double stepped = 0;
    for (std::size_t drawn : excluded) {
      if (drawn > at)
        break;
      stepped += weights.values[drawn];
      at = weights.at(height + stepped);
    }
    while (std::binary_search(excluded.begin(), excluded.end(), at) || weights.values[at] <= 0) // by rounding
      at = at + 1 < own.size() ? at + 1 : 0;

    tokens[count] = legal.id(at);
    logprobs[count] = static_cast<double>(own[at]) - top - log_total;
    perturbed[count].logprob = parent.logprob + (static_cast<double>(own[at]) - top) / temperature - log_all;
    if (count == 0) {
      perturbed[0].gumbel = parent.gumbel;
    } else { // the largest of a Gumbel's worth of the rest, below the one before
      const double place = parent.logprob + log_rest, before = perturbed[count - 1].gumbel;
      const double a = place - before, b = std::log(-std::log(std::max(gumbel_uniforms[count], 0x1.0p-60)));
      const double high = std::max(a, b);
      perturbed[count].gumbel = place - (high + std::log(std::exp(a - high) + std::exp(b - high)));
    }
    excluded.insert(std::lower_bound(excluded.begin(), excluded.end(), at), at);
    excluded_weight += weights.values[at];
  }
  return count;
}

} // namespace toolprm
