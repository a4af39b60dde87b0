#include "toolprm/vocabulary.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "toolprm/grammar.h"

namespace toolprm {

namespace {
constexpr std::size_t kCachedTextBytes = std::size_t{32} << 20;
constexpr std::size_t kCachedScalarMasks = 2048; // about 19 KB each for 152k tokens
} // namespace

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<TokenId> stop_ids, Tokenize tokenize)
    : tokens_(std::move(tokens)), stop_ids_(std::move(stop_ids)), tokenize_(std::move(tokenize)) {
  for (TokenId id : stop_ids_)
    if (!contains(id))
      throw std::invalid_argument("stop id " + std::to_string(id) + " is outside the vocabulary of " +
                                  std::to_string(tokens_.size()) + " tokens");
  for (const std::string &token : tokens_)
    longest_ = std::max(longest_, token.size());
  if (longest_ > 65534)
    throw std::invalid_argument("a token is longer than 65,534 bytes");
  for (TokenId id : stop_ids_)
    tokens_[static_cast<std::size_t>(id)].clear(); // a stop token ends the text, it never writes any
  build_trie();
}

bool Vocabulary::is_stop(TokenId id) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end();
}

void Vocabulary::build_trie() {
  std::vector<TokenId> order;
  order.reserve(tokens_.size());
  for (std::size_t id = 0; id < tokens_.size(); ++id)
    if (!tokens_[id].empty())
      order.push_back(static_cast<TokenId>(id));
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    int c = token(a).compare(token(b));
    return c != 0 ? c < 0 : a < b;
  });

  trie_.byte.push_back(0);
  trie_.depth.push_back(0);
  trie_.skip.push_back(0);
  trie_.first_token.push_back(0);
  std::vector<std::uint32_t> path{0}; // nodes from the root to the last inserted token
  std::string_view previous;
  for (TokenId id : order) {
    std::string_view text = token(id);
    std::size_t shared = 0;
    while (shared < previous.size() && shared < text.size() && previous[shared] == text[shared])
      ++shared;
    while (path.size() > shared + 1) {
      trie_.skip[path.back()] = static_cast<std::uint32_t>(trie_.size());
      path.pop_back();
    }
    for (std::size_t i = shared; i < text.size(); ++i) {
      path.push_back(static_cast<std::uint32_t>(trie_.size()));
      trie_.byte.push_back(static_cast<std::uint8_t>(text[i]));
      trie_.depth.push_back(static_cast<std::uint16_t>(i + 1));
      trie_.skip.push_back(0);
      trie_.first_token.push_back(static_cast<std::uint32_t>(trie_.tokens.size()));
    }
    trie_.tokens.push_back(id);
    previous = text;
  }
  for (std::uint32_t node : path)
    trie_.skip[node] = static_cast<std::uint32_t>(trie_.size());
  trie_.first_token.push_back(static_cast<std::uint32_t>(trie_.tokens.size()));
}

bool Vocabulary::spells(const std::vector<TokenId> &ids, std::string_view bytes) const {
  std::size_t at = 0;
  for (TokenId id : ids) {
    if (!contains(id) || token(id).empty() || bytes.substr(at, token(id).size()) != token(id))
      return false;
    at += token(id).size();
  }
  return at == bytes.size();
}

std::vector<TokenId> Vocabulary::longest_match(std::string_view bytes) const {
  std::vector<TokenId> ids;
  std::size_t at = 0;
  while (at < bytes.size()) {
    TokenId best = -1;
    std::size_t length = 0;
    std::uint32_t node = 0;
    for (std::size_t i = at; i < bytes.size(); ++i) {
      std::uint32_t child = node + 1, end = trie_.skip[node];
      while (child < end && trie_.byte[child] != static_cast<std::uint8_t>(bytes[i]))
        child = trie_.skip[child];
      if (child >= end)
        break;
      node = child;
      if (trie_.first_token[node] < trie_.first_token[node + 1]) {
        best = trie_.tokens[trie_.first_token[node]];
        length = i + 1 - at;
      }
    }
    if (best < 0)
      throw std::invalid_argument("no token of the vocabulary writes the byte " +
                                  std::to_string(static_cast<unsigned char>(bytes[at])));
    ids.push_back(best);
    at += length;
  }
  return ids;
}

std::vector<TokenId> Vocabulary::tokenize(std::string_view bytes) const {
  if (bytes.empty())
    return {};
  std::string key(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = cache_.find(key);
    if (found != cache_.end())
      return found->second;
  }
  // The tokenizer runs without the lock: it may be Python, and wait for the interpreter.
  std::vector<TokenId> ids;
  if (tokenize_)
    ids = tokenize_(bytes);
  if (ids.empty() || !spells(ids, bytes))
    ids = longest_match(bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  const std::size_t room = key.size() + ids.size() * sizeof(TokenId) + 128;
  if (cached_bytes_ + room > kCachedTextBytes) {
    cache_.clear();
    cached_bytes_ = 0;
  }
  if (cache_.emplace(std::move(key), ids).second)
    cached_bytes_ += room;
  return ids;
}

std::shared_ptr<const ScalarMask> Vocabulary::scalar_mask(const std::shared_ptr<const Dfa> &dfa,
                                                          std::int32_t state) const {
  auto key = std::make_pair(dfa, state);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = masks_.find(key);
    if (found != masks_.end())
      return found->second;
  }
  auto mask = std::make_shared<ScalarMask>();
  mask->inside.assign(words(), 0);
  std::vector<std::int32_t> path(longest_ + 1, -1); // automaton state a depth
  path[0] = state;
  for (std::uint32_t node = 1; node < trie_.size();) {
    std::int32_t next = dfa->next(path[trie_.depth[node] - 1u], trie_.byte[node]);
    if (next < 0) {
      node = trie_.skip[node];
      continue;
    }
    for (std::uint32_t t = trie_.first_token[node]; t < trie_.first_token[node + 1]; ++t) {
      TokenId id = trie_.tokens[t];
      mask->inside[static_cast<std::size_t>(id) / 32] |= static_cast<std::int32_t>(1u << (id % 32));
    }
    if (dfa->accepting(next) && trie_.skip[node] > node + 1)
      mask->exits.push_back(node);
    path[trie_.depth[node]] = next;
    ++node;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (masks_.size() >= kCachedScalarMasks) // also lets the automata of grammars that are gone go
    masks_.clear();
  return masks_.emplace(std::move(key), std::move(mask)).first->second;
}

} // namespace toolprm
