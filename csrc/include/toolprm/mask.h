// Which tokens are legal next.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "toolprm/vocabulary.h"

namespace toolprm {

// Immutable once a matcher or a plan hands it out; safe to share between threads.
struct Mask {
  // A bit a token, 1 = legal: token i is bit i % 32 of word i / 32. Empty where few says it all.
  std::vector<std::int32_t> words;
  // The legal tokens themselves, ascending, where they are not many.
  std::vector<TokenId> few;
  // Number of legal tokens.
  std::uint32_t count = 0;

  bool legal(TokenId token) const {
    if (words.empty())
      return std::binary_search(few.begin(), few.end(), token);
    return token >= 0 && static_cast<std::size_t>(token) / 32 < words.size() &&
           (static_cast<std::uint32_t>(words[static_cast<std::size_t>(token) / 32]) >> (token % 32) & 1) != 0;
  }
};

} // namespace toolprm
