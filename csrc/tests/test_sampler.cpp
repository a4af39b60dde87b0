// The sampler: its random numbers, and the tokens that it draws with them.
#include <array>
#include <cmath>
#include <limits>

#include "check.h"
#include "grammars.h"
#include "toolprm/sampler.h"

using namespace toolprm;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Philox 4x32-10 as its paper writes it (Salmon et al. 2011, section 3.2): bijections on the left and right halves.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{counter[0]} * 0xD2511F53u;
    const std::uint64_t right = std::uint64_t{counter[2]} * 0xCD9E8D57u;
    counter = {static_cast<std::uint32_t>(right >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(right),
               static_cast<std::uint32_t>(left >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(left)};
    key = {static_cast<std::uint32_t>(key[0] + 0x9E3779B9ull), static_cast<std::uint32_t>(key[1] + 0xBB67AE85ull)};
  }
  return counter;
}

void random_numbers_are_philox() {
  // The known answers of the authors' Random123 library.
  using Four = std::array<std::uint32_t, 4>;
  CHECK_EQ(philox({0, 0, 0, 0}, {0, 0}), (Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
           (Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  CHECK_EQ(uniform(0, 0, 0, 0), std::ldexp(static_cast<double>(0x6627e8d5e169c58dull >> 11), -53));
  std::mt19937_64 random(seed());
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t key = random(), a = random(), b = random();
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    const Four out = philox({low(a), low(a >> 32), low(b), 0}, {low(key), low(key >> 32)});
    const std::uint64_t bits = (std::uint64_t{out[0]} << 32 | out[1]) >> 11;
    CHECK_EQ(uniform(key, low(a), low(a >> 32), low(b)), std::ldexp(static_cast<double>(bits), -53));
  }
}

void random_numbers_are_uniform() {
  std::array<int, 16> bins{};
  for (std::uint32_t i = 0; i < 16'000; ++i) {
    const double u = uniform(7, i % 10, i / 10, 3);
    CHECK(u >= 0 && u < 1);
    ++bins[static_cast<std::size_t>(u * 16)];
  }
  double chi = 0;
  for (int n : bins)
    chi += (n - 1000.0) * (n - 1000.0) / 1000.0;
  CHECK(chi < 37.7); // 15 degrees of freedom, one in a thousand: the numbers are fixed, so this never changes
}

Mask few(std::vector<TokenId> ids) {
  Mask mask;
  mask.count = static_cast<std::uint32_t>(ids.size());
  mask.few = std::move(ids);
  return mask;
}

Mask words(const std::vector<TokenId> &ids, std::size_t vocabulary) {
  Mask mask;
  auto row = std::make_shared<MaskWords>((vocabulary + 31) / 32, 0);
  for (TokenId id : ids)
    set_bit(*row, id);
  mask.words = row;
  mask.count = static_cast<std::uint32_t>(ids.size());
  return mask;
}

struct Drawn {
  std::vector<TokenId> tokens;
  std::vector<double> logprobs;
};

Drawn draw(const std::vector<float> &logits, const Mask &mask, double temperature,
           const std::vector<double> &uniforms) {
  Drawn out{std::vector<TokenId>(uniforms.size(), -1), std::vector<double>(uniforms.size(), 1)};
  sample({logits}, mask, temperature, uniforms, out.tokens.data(), out.logprobs.data());
  return out;
}

void masks_name_their_tokens() {
  for (const Mask &mask : {few({1, 31, 32, 69}), words({1, 31, 32, 69}, 70)}) {
    for (TokenId id = -40; id < 200; ++id)
      CHECK_EQ(mask.legal(id), id == 1 || id == 31 || id == 32 || id == 69);
    CHECK(!mask.legal(std::numeric_limits<TokenId>::max()) && !mask.legal(std::numeric_limits<TokenId>::min()));
  }
}

void frequencies_follow_the_probabilities() {
  std::mt19937 random(seed());
  std::normal_distribution<float> normal(0, 2);
  const std::size_t size = 70;
  std::vector<float> logits(size);
  for (float &l : logits)
    l = normal(random);
  const std::vector<TokenId> legal{3, 4, 31, 32, 50, 69};
  logits[50] = -std::numeric_limits<float>::infinity();
  const std::size_t n = 40'000;
  std::vector<double> uniforms;
  for (std::size_t i = 0; i < n; ++i)
    uniforms.push_back(uniform(11, static_cast<std::uint32_t>(i), 5, 0));
  for (const double temperature : {0.5, 1.0, 2.0}) {
    long double total = 0, total_at_one = 0;
    for (TokenId id : legal) {
      total += std::exp(static_cast<long double>(logits[static_cast<std::size_t>(id)]) / temperature);
      total_at_one += std::exp(static_cast<long double>(logits[static_cast<std::size_t>(id)]));
    }
    const Drawn a = draw(logits, few(legal), temperature, uniforms);
    const Drawn b = draw(logits, words(legal, size), temperature, uniforms);
    CHECK(a.tokens == b.tokens && a.logprobs == b.logprobs);
    for (TokenId id : legal) {
      const auto logit = static_cast<long double>(logits[static_cast<std::size_t>(id)]);
      const auto p = static_cast<double>(std::exp(logit / temperature) / total);
      const auto count = static_cast<double>(std::count(a.tokens.begin(), a.tokens.end(), id));
      const double mean = p * static_cast<double>(n), sigma = std::sqrt(mean * (1 - p));
      // A rare token's count is no normal number: one draw where a fiftieth is expected is many sigmas off.
      if (mean >= 20)
        CHECK(std::abs(count - mean) <= 5 * sigma);
      else
        CHECK(count <= mean + 5 * sigma + 5);
      for (std::size_t i = 0; i < n; ++i)
        if (a.tokens[i] == id) {
          CHECK(std::abs(a.logprobs[i] - static_cast<double>(std::log(std::exp(logit) / total_at_one))) < 1e-9);
          break;
        }
    }
  }
}

// Inversion of the cumulative distribution, token by token.
void draws_are_inversions() {
  std::mt19937 random(seed());
  std::normal_distribution<float> normal(0, 3);
  for (int i = 0; i < 200; ++i) {
    std::vector<float> logits(40);
    std::vector<TokenId> legal;
    for (std::size_t id = 0; id < logits.size(); ++id) {
      logits[id] = below(random, 8) == 0 ? -std::numeric_limits<float>::infinity() : normal(random);
      if (below(random, 2))
        legal.push_back(static_cast<TokenId>(id));
    }
    legal.push_back(40);
    logits.push_back(0);
    const double temperature = 0.3 + 0.1 * static_cast<double>(below(random, 20));
    std::vector<double> uniforms{0.0, std::nextafter(1.0, 0.0)};
    for (int k = 0; k < 20; ++k)
      uniforms.push_back(std::uniform_real_distribution<double>()(random));
    const Drawn drawn = draw(logits, few(legal), temperature, uniforms);
    double total = 0, top = -kInf;
    for (TokenId id : legal)
      top = std::max(top, static_cast<double>(logits[static_cast<std::size_t>(id)]));
    for (TokenId id : legal)
      total += std::exp((static_cast<double>(logits[static_cast<std::size_t>(id)]) - top) / temperature);
    for (std::size_t k = 0; k < uniforms.size(); ++k) {
      double sum = 0, before = 0;
      for (TokenId id : legal) {
        before = sum;
        sum += std::exp((static_cast<double>(logits[static_cast<std::size_t>(id)]) - top) / temperature);
        if (id == drawn.tokens[k])
          break;
      }
      CHECK(before <= uniforms[k] * total + 1e-9 && uniforms[k] * total <= sum + 1e-9);
      CHECK(std::isfinite(logits[static_cast<std::size_t>(drawn.tokens[k])])); // weight 0 is never drawn
    }
  }
}

void temperature_zero_takes_the_likeliest() {
  const std::vector<float> logits{9, 1, 3, 3, 2};
  const Drawn drawn = draw(logits, few({1, 2, 3, 4}), 0, {0.0, 0.5, 0.999});
  CHECK_EQ(drawn.tokens, (std::vector<TokenId>{2, 2, 2})); // the lowest id of equals
  const double total = std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0);
  CHECK(std::abs(drawn.logprobs[0] - (3 - std::log(total))) < 1e-12);
  // A temperature next to nothing does the same where there is one likeliest.
  CHECK_EQ(draw({1, 5, 4}, few({0, 1, 2}), 1e-300, {0.0, 0.999}).tokens, (std::vector<TokenId>{1, 1}));
}

void a_single_legal_token_is_certain() {
  for (const double temperature : {0.0, 0.7, 1e6})
    for (const float logit : {-1e30f, 0.0f, 80.0f}) {
      const Drawn drawn = draw({100, logit}, few({1}), temperature, {0.0, 0.3, std::nextafter(1.0, 0.0)});
      CHECK_EQ(drawn.tokens, (std::vector<TokenId>{1, 1, 1}));
      CHECK_EQ(drawn.logprobs, (std::vector<double>{0, 0, 0}));
    }
}

void large_logits_do_not_overflow() {
  const float huge = std::numeric_limits<float>::max();
  const Drawn drawn = draw({huge, huge, -huge}, few({0, 1, 2}), 0.01, {0.1, 0.9});
  CHECK_EQ(drawn.tokens, (std::vector<TokenId>{0, 1}));
  CHECK(std::abs(drawn.logprobs[0] - std::log(0.5)) < 1e-12);
}

void hopeless_logits_are_errors() {
  const float infinite = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS(draw({0, nan, 1}, few({0, 1}), 1, {0.5}), std::domain_error);
  CHECK_THROWS(draw({0, nan, 1}, few({0, 1}), 0, {0.5}), std::domain_error);
  CHECK_THROWS(draw({-infinite, -infinite, 1}, few({0, 1}), 1, {0.5}), std::domain_error);
  CHECK_THROWS(draw({infinite, 0}, few({0, 1}), 1, {0.5}), std::domain_error);
  CHECK_THROWS(draw({0, 0}, few({}), 1, {0.5}), std::domain_error);
  // What is illegal may be anything.
  CHECK_EQ(draw({0, nan, infinite}, few({0}), 1, {0.5}).tokens, std::vector<TokenId>{0});
  // Too few logits.
  CHECK_THROWS(draw({0, 0}, few({1, 2}), 1, {0.5}), std::invalid_argument);
  CHECK_THROWS(draw(std::vector<float>(97), words({1, 99}, 100), 1, {0.5}), std::invalid_argument);
}

} // namespace

int main() {
  random_numbers_are_philox();
  random_numbers_are_uniform();
  masks_name_their_tokens();
  frequencies_follow_the_probabilities();
  draws_are_inversions();
  temperature_zero_takes_the_likeliest();
  a_single_legal_token_is_certain();
  large_logits_do_not_overflow();
  hopeless_logits_are_errors();
  return check::report();
}
