// The tokens of a model as bytes, laid out as a flat trie in depth-first order.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "toolprm/export.h"

namespace toolprm {

class Dfa; // in grammar.h

using TokenId = std::int32_t;
using MaskWords = std::vector<std::int32_t>; // see mask.h

// Turns bytes into token ids the way the model's own tokenizer would. May return an empty vector or
// ids that do not spell the bytes: the vocabulary then falls back to the longest match.
using Tokenize = std::function<std::vector<TokenId>(std::string_view)>;

// A trie of token texts, nodes in preorder: the children of a node follow it, its subtree ends at skip.
class TOOLPRM_API TokenTrie {
public:
  // All that a walk asks of a node lies together: the trie is larger than the caches.
  struct Node {
    std::uint32_t skip = 0;        // first node after the subtree
    std::uint32_t first_token = 0; // of its tokens, which end where those of the next node begin
    std::uint32_t first_edge = 0;  // likewise
    std::uint16_t depth = 0;       // bytes from the root
    std::uint8_t byte = 0;         // on the edge into the node
  };
  struct Edge {
    std::uint32_t node;
    std::uint8_t byte;
  };

  // The root alone.
  TokenTrie() : TokenTrie(std::vector<std::pair<std::string_view, TokenId>>()) {}
  // The texts are sorted here; tokens with the same text end at one node.
  explicit TokenTrie(std::vector<std::pair<std::string_view, TokenId>> texts);

  // Nodes, the root among them, which is node 0.
  std::size_t size() const { return nodes_.size() - 1; }
  const Node &operator[](std::uint32_t node) const { return nodes_[node]; }
  bool is_leaf(std::uint32_t node) const { return nodes_[node].skip == node + 1; }
  // Ids that end at a node.
  std::span<const TokenId> tokens(std::uint32_t node) const { return tokens(node, node + 1); }
  // Those that end at it or further down.
  std::span<const TokenId> tokens_from(std::uint32_t node) const { return tokens(node, nodes_[node].skip); }
  // Those that end further down.
  std::span<const TokenId> tokens_below(std::uint32_t node) const { return tokens(node + 1, nodes_[node].skip); }
  // To the children of a node, by ascending byte.
  std::span<const Edge> edges(std::uint32_t node) const {
    return {edges_.data() + nodes_[node].first_edge, edges_.data() + nodes_[node + 1].first_edge};
  }
  // The child of a node over a byte, 0 where there is none.
  std::uint32_t child(std::uint32_t node, std::uint8_t byte) const {
    if (node == 0)
      return first_[byte];
    const std::uint32_t only = node + 1; // most nodes have one child, which comes next
    if (only < nodes_[node].skip && nodes_[only].skip == nodes_[node].skip)
      return nodes_[only].byte == byte ? only : 0;
    for (const Edge &edge : edges(node))
      if (edge.byte >= byte)
        return edge.byte == byte ? edge.node : 0;
    return 0;
  }

private:
  std::span<const TokenId> tokens(std::uint32_t begin, std::uint32_t end) const {
    return {tokens_.data() + nodes_[begin].first_token, tokens_.data() + nodes_[end].first_token};
  }

  std::vector<Node> nodes_; // and one behind them
  std::vector<TokenId> tokens_;
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> first_{}; // children of the root
};

// What the tokens do to a scalar from one of its states.
struct TOOLPRM_API ScalarMask {
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
class TOOLPRM_API Vocabulary {
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
  // Computes the masks of all broad states ahead: those of free strings, which nearly every grammar asks for.
  void prepare(const std::shared_ptr<const Dfa> &dfa) const;
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
