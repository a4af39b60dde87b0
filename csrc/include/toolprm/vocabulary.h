// The tokens of a model as bytes, laid out as a flat trie in depth-first order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace toolprm {

class Dfa; // in grammar.h

using TokenId = std::int32_t;

// Turns bytes into token ids the way the model's own tokenizer would. May return an empty vector or
// ids that do not spell the bytes: the vocabulary then falls back to the longest match.
using Tokenize = std::function<std::vector<TokenId>(std::string_view)>;

// A trie over all tokens, nodes in preorder: the children of a node follow it, its subtree ends at skip.
struct TokenTrie {
  std::vector<std::uint8_t> byte;         // byte on the edge into the node; node 0 is the root
  std::vector<std::uint32_t> skip;        // first node after the subtree
  std::vector<std::uint16_t> depth;       // bytes from the root
  std::vector<std::uint32_t> first_token; // nodes + 1 offsets into tokens
  std::vector<TokenId> tokens;            // ids that end at a node
  std::size_t size() const { return byte.size(); }
};

// What the tokens do to a scalar automaton from one of its states.
struct ScalarMask {
  std::vector<std::int32_t> inside; // mask row: tokens that the automaton reads whole
  std::vector<std::uint32_t> exits; // trie nodes at which the value may be over, with tokens that go on after it
};

// What a model's tokens write, and which of them end an answer. Immutable but for its caches; safe to share between
// threads as far as the tokenizer that it was given is.
class Vocabulary {
public:
  // tokens[id] holds the bytes of a token; an empty entry is never legal in text (special or unused ids).
  // stop_ids end an answer; they write nothing, whatever their entry says.
  // Throws std::invalid_argument for stop ids out of range or tokens over 65,534 bytes.
  Vocabulary(std::vector<std::string> tokens, std::vector<TokenId> stop_ids, Tokenize tokenize = {});

  std::size_t size() const { return tokens_.size(); }
  // Number of int32 words in a mask row: one bit a token.
  std::size_t words() const { return (tokens_.size() + 31) / 32; }
  // The bytes of a token that the vocabulary contains.
  const std::string &token(TokenId id) const { return tokens_[static_cast<std::size_t>(id)]; }
  bool contains(TokenId id) const { return id >= 0 && static_cast<std::size_t>(id) < tokens_.size(); }
  const std::vector<TokenId> &stop_ids() const { return stop_ids_; }
  bool is_stop(TokenId id) const;
  const TokenTrie &trie() const { return trie_; }
  // Bytes of the longest token.
  std::size_t longest() const { return longest_; }

  // Token ids that spell the bytes: the tokenizer's own where they do, else the longest match.
  // Throws std::invalid_argument where the longest match finds no token for a byte, and what the tokenizer throws.
  std::vector<TokenId> tokenize(std::string_view bytes) const;

  // Computed once a (automaton, state), as long as there is room for it.
  std::shared_ptr<const ScalarMask> scalar_mask(const std::shared_ptr<const Dfa> &dfa, std::int32_t state) const;

private:
  std::vector<TokenId> longest_match(std::string_view bytes) const;
  bool spells(const std::vector<TokenId> &ids, std::string_view bytes) const;
  void build_trie();

  std::vector<std::string> tokens_;
  std::vector<TokenId> stop_ids_;
  Tokenize tokenize_;
  TokenTrie trie_;
  std::size_t longest_ = 0;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, std::vector<TokenId>> cache_;
  mutable std::size_t cached_bytes_ = 0;
  mutable std::map<std::pair<std::shared_ptr<const Dfa>, std::int32_t>, std::shared_ptr<const ScalarMask>> masks_;
};

} // namespace toolprm
