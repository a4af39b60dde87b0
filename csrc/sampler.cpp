#include "toolprm/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace toolprm {

double uniform(std::uint64_t seed, std::uint32_t candidate, std::uint32_t position, std::uint32_t round) {
  std::array<std::uint32_t, 4> x{candidate, position, round, 0};
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

void sample(std::span<const float> logits, const Mask &mask, double temperature, std::span<const double> uniforms,
            TokenId *tokens, double *logprobs) {
  std::vector<TokenId> ids;
  ids.reserve(mask.count);
  if (mask.words.empty())
    ids = mask.few;
  else
    for (std::size_t w = 0; w < mask.words.size(); ++w)
      for (auto left = static_cast<std::uint32_t>(mask.words[w]); left; left &= left - 1)
        ids.push_back(static_cast<TokenId>(w * 32 + static_cast<std::size_t>(std::countr_zero(left))));
  if (!ids.empty() && static_cast<std::size_t>(ids.back()) >= logits.size())
    throw std::invalid_argument("there are " + std::to_string(logits.size()) + " logits, but token " +
                                std::to_string(ids.back()) + " is legal");
  const auto logit = [&](TokenId id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };

  double top = -std::numeric_limits<double>::infinity();
  TokenId best = -1;
  for (TokenId id : ids) {
    if (std::isnan(logit(id)))
      throw std::domain_error("the model's logits are not numbers (NaN)");
    if (logit(id) > top) {
      top = logit(id);
      best = id;
    }
  }
  if (best < 0 || !std::isfinite(top))
    throw std::domain_error("no legal token has a finite logit");
  double total = 0;
  for (TokenId id : ids)
    total += std::exp(logit(id) - top);
  const double log_total = std::log(total); // less top, which may be too large to add it to

  if (temperature <= 0) {
    for (std::size_t i = 0; i < uniforms.size(); ++i) {
      tokens[i] = best;
      logprobs[i] = -log_total;
    }
    return;
  }
  std::vector<double> cumulative(ids.size());
  double sum = 0;
  for (std::size_t i = 0; i < ids.size(); ++i)
    cumulative[i] = sum += std::exp((logit(ids[i]) - top) / temperature);
  for (std::size_t i = 0; i < uniforms.size(); ++i) {
    auto at = std::upper_bound(cumulative.begin(), cumulative.end(), uniforms[i] * sum);
    if (at == cumulative.end()) // rounding: the last token with any weight
      at = std::lower_bound(cumulative.begin(), cumulative.end(), sum);
    const TokenId id = ids[static_cast<std::size_t>(at - cumulative.begin())];
    tokens[i] = id;
    logprobs[i] = logit(id) - top - log_total;
  }
}

} // namespace toolprm
