// The tokens of a model as bytes, laid out as a flat trie in depth-first order.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace toolprm {

class Dfa; // in grammar.h

using TokenId = std::int32_t;
using MaskWords = std::vector<std::int32_t>; // see mask.h

// Turns bytes into token ids the way the model's own tokenizer would. May return an empty vector or
// ids that do not spell the bytes: the vocabulary then falls back to the longest match.
using Tokenize = std::function<std::vector<TokenId>(std::string_view)>;

// A trie of token texts, nodes in preorder: the children of a node follow it, its subtree ends at skip.
struct TokenTrie {
  std::vector<std::uint8_t> byte;         // byte on the edge into the node; node 0 is the root
  std::vector<std::uint32_t> skip;        // first node after the subtree
  std::vector<std::uint16_t> depth;       // bytes from the root
  std::vector<std::uint32_t> first_token; // nodes + 1 offsets into tokens
  std::vector<TokenId> tokens;            // ids that end at a node
  std::vector<std::uint32_t> first_edge;  // nodes + 1 offsets into edge_byte and edge_node
  std::vector<std::uint8_t> edge_byte;    // of the children of a node, ascending
  std::vector<std::uint32_t> edge_node;

  // The root alone.
  TokenTrie() : TokenTrie(std::vector<std::pair<std::string_view, TokenId>>()) {}
  // The texts are sorted here; tokens with the same text end at one node.
  explicit TokenTrie(std::vector<std::pair<std::string_view, TokenId>> texts);

  std::size_t size() const { return byte.size(); }
  // The child of a node over a byte, 0 where there is none.
  std::uint32_t child(std::uint32_t node, std::uint8_t b) const {
    const std::uint32_t begin = first_edge[node], count = first_edge[node + 1] - begin;
    const void *found = count == 0 ? nullptr : std::memchr(&edge_byte[begin], b, count);
    return found ? edge_node[static_cast<std::size_t>(static_cast<const std::uint8_t *>(found) - edge_byte.data())] : 0;
  }
};

// What the tokens do to a scalar from one of its states.
struct ScalarMask {
  std::shared_ptr<const MaskWords> inside; // tokens that the scalar reads whole
  std::uint32_t count = 0;                 // of them
  // Tokens that go on where the value may be over: what is left of them, by the state that it ends in.
  struct Exit {
    std::int32_t state;
    TokenTrie rest;
  };
  std::vector<Exit> exits;
  std::size_t bytes() const;
};

// What a model's tokens write, and which of them end an answer. Immutable but for its caches; safe to share between
// threads as far as the tokenizer that it was given is.
class Vocabulary {
public:
  // tokens[id] holds the bytes of a token; an empty entry is never legal in text (special or unused ids).
  // stop_ids end an answer; they write nothing, whatever their entry says.
  // Throws std::invalid_argument for stop ids out of range or tokens over 8,192 bytes.
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

  // Of the texts that an automaton accepts. Computed once a (automaton, state), as long as there is room for it.
  std::shared_ptr<const ScalarMask> scalar_mask(const std::shared_ptr<const Dfa> &dfa, std::int32_t state) const;
  // Of least to most more repetitions of a unit and then a byte that cannot begin one: the characters of a string and
  // its quote. state: of the unit that is being read; it counts once it is over. Computed once, as the above.
  std::shared_ptr<const ScalarMask> repeat_mask(const std::shared_ptr<const Dfa> &unit, std::uint8_t end,
                                                std::int32_t state, std::uint32_t least, std::uint32_t most) const;

private:
  std::vector<TokenId> longest_match(std::string_view bytes) const;
  bool spells(const std::vector<TokenId> &ids, std::string_view bytes) const;
  // What is known under a key, or what make() finds.
  template <class Key, class Value, class Make>
  std::shared_ptr<const Value> once(std::map<Key, std::shared_ptr<const Value>> &known, Key key, Make make) const;

  std::vector<std::string> tokens_;
  std::vector<TokenId> stop_ids_;
  Tokenize tokenize_;
  TokenTrie trie_;
  std::size_t longest_ = 0;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, std::vector<TokenId>> cache_;
  mutable std::size_t cached_bytes_ = 0;
  using DfaState = std::pair<std::shared_ptr<const Dfa>, std::int32_t>;
  struct Repeats; // what the tokens do to any number of units
  mutable std::map<DfaState, std::shared_ptr<const ScalarMask>> masks_;
  mutable std::map<std::pair<DfaState, std::uint8_t>, std::shared_ptr<const Repeats>> repeats_;
  mutable std::map<std::tuple<DfaState, std::uint8_t, std::uint32_t, std::uint32_t>, std::shared_ptr<const ScalarMask>>
      repeat_masks_;
  mutable std::size_t mask_bytes_ = 0; // of the three
};

} // namespace toolprm
