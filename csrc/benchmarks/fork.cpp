// What a fork costs, by how long the context is: a copy of what the search holds of a prefix, and the first token that
// it writes on its own (one copy of a partly filled block is planned; no tensor is touched here).
//
//   make bench-cpp
//   build/bench/fork --json
//
// Prints nanoseconds a fork at each length: the least of many rounds, all lengths in turn, so that what else the
// machine does meets them alike.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "toolprm/block_pool.h"
#include "toolprm/chain.h"
#include "toolprm/grammar.h"
#include "toolprm/matcher.h"
#include "toolprm/vocabulary.h"

using namespace toolprm;

namespace {

constexpr std::array<std::size_t, 3> kLengths{100, 1'600, 16'000};
constexpr int kForks = 2'000, kRounds = 200;

struct Prefix {
  Matcher matcher;
  KvSequence kv, reward_kv;
  Chain<std::string> steps; // as many as an answer of that length has
};

Prefix prefix_of(std::size_t tokens, const std::shared_ptr<const Grammar> &grammar,
                 const std::shared_ptr<const Vocabulary> &vocabulary, const std::shared_ptr<BlockPool> &pool) {
  Prefix prefix{Matcher(grammar, vocabulary), KvSequence(pool), KvSequence(pool), {}};
  std::vector<std::int32_t> slots;
  std::vector<SlotCopy> copies;
  // One token short of a whole number of blocks, so that the last one is shared, and copied at the first token.
  for (std::size_t i = 0; i + 1 < tokens; ++i) {
    prefix.matcher.accept(1);
    prefix.kv.append(1, slots, copies);
    prefix.reward_kv.append(1, slots, copies);
    if (i % 10 == 0)
      prefix.steps.push_back("a step of an answer");
  }
  return prefix;
}

double nanoseconds_a_fork(const Prefix &parent) {
  std::vector<std::int32_t> slots;
  std::vector<SlotCopy> copies;
  slots.reserve(4 * kForks);
  copies.reserve(4 * kForks);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kForks; ++i) {
    Prefix fork = parent;
    fork.kv.append(1, slots, copies);
    fork.reward_kv.append(1, slots, copies);
  }
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  return spent.count() / kForks;
}

} // namespace

int main(int argc, char **argv) {
  GrammarBuilder b;
  std::vector<std::int32_t> transitions(256, -1); // any number of letters a
  transitions['a'] = 0;
  const std::vector<std::uint8_t> accepting{1};
  const auto letters = std::make_shared<const Dfa>(transitions, accepting);
  const auto grammar = b.build(b.sequence({b.scalar(letters), b.stop()}), false);
  const auto vocabulary =
      std::make_shared<const Vocabulary>(std::vector<std::string>{"", "a"}, std::vector<TokenId>{0});
  const auto pool = std::make_shared<BlockPool>(16);

  std::vector<Prefix> prefixes;
  for (const std::size_t length : kLengths)
    prefixes.push_back(prefix_of(length, grammar, vocabulary, pool));
  std::array<double, kLengths.size()> best;
  best.fill(std::numeric_limits<double>::infinity());
  for (int round = 0; round < kRounds; ++round)
    for (std::size_t i = 0; i < kLengths.size(); ++i)
      best[i] = std::min(best[i], nanoseconds_a_fork(prefixes[i]));

  const bool json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  for (std::size_t i = 0; i < kLengths.size(); ++i)
    std::printf(json ? "%s\"%zu\": %.1f" : "%s%6zu tokens: %7.1f ns",
                i == 0 ? (json ? "{" : "")
                : json ? ", "
                       : "\n",
                kLengths[i], best[i]);
  std::printf(json ? ", \"ratio\": %.3f}\n" : "\nlongest over shortest: %.2f\n", best.back() / best.front());
  return 0;
}
