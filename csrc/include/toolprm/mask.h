// Which tokens are legal next.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "toolprm/vocabulary.h"

namespace toolprm {

// MaskWords hold a bit a token, 1 = legal: token i is bit i % 32 of word i / 32.

inline void set_bit(std::span<std::int32_t> words, TokenId token) {
  words[static_cast<std::size_t>(token) / 32] |= static_cast<std::int32_t>(1u << (token % 32));
}

inline bool has_bit(std::span<const std::int32_t> words, TokenId token) {
  return token >= 0 && static_cast<std::size_t>(token) / 32 < words.size() &&
         (static_cast<std::uint32_t>(words[static_cast<std::size_t>(token) / 32]) >> (token % 32) & 1) != 0;
}

// Immutable once a matcher or a plan hands it out; safe to share between threads.
struct Mask {
  // Legal tokens, as bits: masks of many states share them, such as those inside free strings. Null where few says it
  // all.
  std::shared_ptr<const MaskWords> words;
  // The other legal tokens, ascending.
  std::vector<TokenId> few;
  // Number of legal tokens.
  std::uint32_t count = 0;
  // Nodes of tries that were visited to find them.
  std::uint32_t nodes = 0;

  bool legal(TokenId token) const {
    return std::binary_search(few.begin(), few.end(), token) || (words && has_bit(*words, token));
  }
  // Writes all of it to a row that is at least as wide as the vocabulary.
  void write(std::span<std::int32_t> row) const {
    auto rest = row.begin();
    if (words)
      rest = std::copy(words->begin(), words->end(), rest);
    std::fill(rest, row.end(), 0);
    for (TokenId token : few)
      set_bit(row, token);
  }
};

} // namespace toolprm
