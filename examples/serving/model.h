// A model that is small enough to read, and that notices what a wrong plan would do: what stands for its keys and
// values is the token and the position that it was given for a slot, and its logits depend on all that a row reads.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <toolprm/search.h>
#include <toolprm/vocabulary.h>

// The bytes, some words of calls, and a token that ends an answer.
inline std::shared_ptr<const toolprm::Vocabulary> make_vocabulary() {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b)
    tokens.emplace_back(1, static_cast<char>(b));
  for (const char *word : {"{\"name\": \"", "\", \"arguments\": {", "\": ", "\": \"", "\", \"", "\"}}]", "}}]", "[]",
                           "city", "day", "get_", "Oslo", "Lima", "the ", "ing", "and", "er"})
    tokens.emplace_back(word);
  tokens.emplace_back(""); // writes nothing
  const auto stop = static_cast<toolprm::TokenId>(tokens.size() - 1);
  return std::make_shared<const toolprm::Vocabulary>(std::move(tokens), std::vector<toolprm::TokenId>{stop});
}

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0xff51afd7ed558ccd;
  return hash ^ (hash >> 29);
}

// The memory behind a pool of blocks, and the one layer of "attention" over it.
class Cache {
public:
  explicit Cache(std::int32_t block_size) : block_size_(block_size) {}

  // Does what a plan asks of the memory, in its order: copies, then the tokens of the pass. Returns a hash of what each
  // output reads; one that reads anything else than tokens at positions 0, 1, 2, ... is an error.
  std::vector<std::uint64_t> forward(const toolprm::Plan &plan) {
    slots_.resize(index(plan.blocks) * index(block_size_));
    for (const toolprm::SlotCopy &copy : plan.copies)
      for (std::int32_t i = 0; i < copy.count; ++i)
        slots_.at(index(copy.target + i)) = slots_.at(index(copy.source + i));
    for (std::size_t i = 0; i < plan.tokens.size(); ++i)
      slots_.at(index(plan.slots[i])) = {plan.tokens[i], plan.positions[i]};
    std::vector<std::uint64_t> hashes;
    for (const std::int32_t output : plan.outputs)
      hashes.push_back(read(plan, index(output)));
    copies += plan.copies.size();
    segments_shared += plan.contexts.size() > plan.segments.size() ? 1 : 0;
    return hashes;
  }

  std::size_t copies = 0, segments_shared = 0; // what there was to get wrong

private:
  struct Slot {
    toolprm::TokenId token = -1;
    std::int32_t position = -1;
  };

  static std::size_t index(std::int32_t i) {
    if (i < 0)
      throw std::logic_error("a plan points nowhere");
    return static_cast<std::size_t>(i);
  }

  // All that a token of the pass sees: the segments of its row's context, then the row's own tokens up to itself.
  std::uint64_t read(const toolprm::Plan &plan, std::size_t token) const {
    const std::size_t row = index(plan.rows[token]), contexts = index(plan.context_width),
                      blocks = index(plan.table_width);
    std::uint64_t hash = 1;
    std::int32_t length = 0;
    const auto take = [&](std::int32_t slot) {
      const Slot &s = slots_.at(index(slot));
      if (s.token < 0 || s.position != length)
        throw std::logic_error("slot " + std::to_string(slot) + " holds no token at position " +
                               std::to_string(length));
      hash = mix(hash, static_cast<std::uint64_t>(s.token));
      ++length;
    };
    for (std::size_t c = 0; c < contexts; ++c)
      if (const std::int32_t segment = plan.contexts[row * contexts + c]; segment >= 0)
        for (std::int32_t i = 0; i < plan.segments[index(segment)].count; ++i)
          take(plan.segments[index(segment)].slot + i);
    const std::int32_t before = length;
    while (length <= plan.positions[token]) {
      const std::int32_t own = length - before;
      take(plan.block_tables[row * blocks + index(own / block_size_)] * block_size_ + own % block_size_);
    }
    return hash;
  }

  std::int32_t block_size_;
  std::vector<Slot> slots_;
};

// The logit of a token, by what was read before it. Letters are likely, and ends of strings, objects and lists, so that
// answers end.
inline float logit(std::uint64_t read, toolprm::TokenId id, const toolprm::Vocabulary &vocabulary) {
  const std::string &text = vocabulary.token(id);
  const float noise = static_cast<float>(mix(read, static_cast<std::uint64_t>(id)) >> 40) / static_cast<float>(1 << 24);
  const bool letter = !text.empty() && (text[0] | 32) >= 'a' && (text[0] | 32) <= 'z';
  return 4 * noise + (letter ? 2 : text.find_first_of("\"}]") != std::string::npos ? 4 : 0);
}

// A score in [0, 1].
inline double score(std::uint64_t read) { return static_cast<double>(mix(read, 7) >> 11) / 9007199254740992.0; }
