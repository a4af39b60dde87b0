#include "toolprm/vocabulary.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "toolprm/grammar.h"
#include "toolprm/mask.h"

namespace toolprm {

namespace {
constexpr std::size_t kLongestToken = 8192; // walks along a token go down by recursion
constexpr std::size_t kCachedTextBytes = std::size_t{32} << 20;
constexpr std::size_t kCachedMasks = 2048; // about 19 KB each for 152k tokens
constexpr std::size_t kCachedMaskBytes = std::size_t{64} << 20;
} // namespace

TokenTrie::TokenTrie(std::vector<std::pair<std::string_view, TokenId>> texts) {
  std::sort(texts.begin(), texts.end());
  nodes_.emplace_back();
  std::vector<std::uint32_t> path{0}; // nodes from the root to the last inserted token
  const auto here = [&] { return static_cast<std::uint32_t>(nodes_.size()); };
  std::string_view previous;
  for (const auto &[text, id] : texts) {
    std::size_t shared = 0;
    while (shared < previous.size() && shared < text.size() && previous[shared] == text[shared])
      ++shared;
    while (path.size() > shared + 1) {
      nodes_[path.back()].skip = here();
      path.pop_back();
    }
    for (std::size_t i = shared; i < text.size(); ++i) {
      path.push_back(here());
      nodes_.push_back({0, static_cast<std::uint32_t>(tokens_.size()), 0, static_cast<std::uint16_t>(i + 1),
                        static_cast<std::uint8_t>(text[i])});
    }
    tokens_.push_back(id);
    previous = text;
  }
  for (std::uint32_t node : path)
    nodes_[node].skip = here();
  nodes_.push_back({0, static_cast<std::uint32_t>(tokens_.size()), 0, 0, 0});
  for (std::uint32_t node = 0; node < size(); ++node) {
    nodes_[node].first_edge = static_cast<std::uint32_t>(edges_.size());
    for (std::uint32_t c = node + 1; c < nodes_[node].skip; c = nodes_[c].skip)
      edges_.push_back({c, nodes_[c].byte});
  }
  nodes_.back().first_edge = static_cast<std::uint32_t>(edges_.size());
  for (const Edge &edge : edges(0))
    first_[edge.byte] = edge.node;
}

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<TokenId> stop_ids, Tokenize tokenize)
    : tokens_(std::move(tokens)), stop_ids_(std::move(stop_ids)), tokenize_(std::move(tokenize)) {
  for (TokenId id : stop_ids_)
    if (!contains(id))
      throw std::invalid_argument("stop id " + std::to_string(id) + " is outside the vocabulary of " +
                                  std::to_string(tokens_.size()) + " tokens");
  for (const std::string &token : tokens_)
    longest_ = std::max(longest_, token.size());
  if (longest_ > kLongestToken)
    throw std::invalid_argument("a token is longer than " + std::to_string(kLongestToken) + " bytes");
  for (TokenId id : stop_ids_)
    tokens_[static_cast<std::size_t>(id)].clear(); // a stop token ends the text, it never writes any
  std::vector<std::pair<std::string_view, TokenId>> texts;
  texts.reserve(tokens_.size());
  for (std::size_t id = 0; id < tokens_.size(); ++id)
    if (!tokens_[id].empty())
      texts.emplace_back(tokens_[id], static_cast<TokenId>(id));
  trie_ = TokenTrie(std::move(texts));
}

bool Vocabulary::is_stop(TokenId id) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end();
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
      node = trie_.child(node, static_cast<std::uint8_t>(bytes[i]));
      if (node == 0)
        break;
      if (!trie_.tokens(node).empty()) {
        best = trie_.tokens(node).front();
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

// ---------------------------------------------------------------------------------------------- masks of scalars

namespace {

// The text of a token from an exit on, by the state of the automaton there.
using Rests = std::map<std::int32_t, std::vector<std::pair<std::string_view, TokenId>>>;

// A token that units take whole: how many it needs, and, where the end byte is its last, how many came before.
struct UnitToken {
  TokenId token;
  std::uint16_t needs;
  bool ends;
};

// A token that goes on after the end byte, which units came before.
struct UnitExit {
  TokenId token;
  std::uint16_t units, at; // at: bytes before it goes on
};

// Calls visit(node, state) at each node of the trie that next(state, node) leads to, from a state at the root; visit
// returns whether to go on below.
template <class S, class Next, class Visit>
void walk(const TokenTrie &trie, std::size_t longest, S state, const Next &next, const Visit &visit) {
  std::vector<S> path(longest + 1, state);
  for (std::uint32_t node = 1; node < trie.size();) {
    const TokenTrie::Node &at = trie[node];
    if (next(path[at.depth - 1u], at.byte, path[at.depth]) && visit(node, path[at.depth]))
      ++node;
    else
      node = at.skip;
  }
}

} // namespace

struct Vocabulary::Repeats {
  std::vector<UnitToken> tokens; // ascending by what they need
  std::vector<UnitExit> exits;
  std::size_t bytes() const { return tokens.size() * sizeof(UnitToken) + exits.size() * sizeof(UnitExit); }
};

std::size_t ScalarMask::bytes() const {
  std::size_t sum = inside->size() * sizeof(std::int32_t);
  for (const Exit &exit : exits)
    sum += exit.rest.size() * 24;
  return sum;
}

template <class Key, class Value, class Make>
std::shared_ptr<const Value> Vocabulary::once(std::map<Key, std::shared_ptr<const Value>> &known, Key key,
                                              Make make) const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = known.find(key);
    if (found != known.end())
      return found->second;
  }
  std::shared_ptr<const Value> made = make();
  std::lock_guard<std::mutex> lock(mutex_);
  // Making room also lets the automata of grammars that are gone go.
  if (mask_bytes_ > kCachedMaskBytes || masks_.size() + repeat_masks_.size() + repeats_.size() >= kCachedMasks) {
    masks_.clear();
    repeats_.clear();
    repeat_masks_.clear();
    mask_bytes_ = 0;
  }
  const auto [at, fresh] = known.emplace(std::move(key), std::move(made));
  if (fresh)
    mask_bytes_ += at->second->bytes();
  return at->second;
}

std::shared_ptr<const ScalarMask> Vocabulary::scalar_mask(const std::shared_ptr<const Dfa> &dfa,
                                                          std::int32_t state) const {
  return once(masks_, DfaState(dfa, state), [&] {
    auto mask = std::make_shared<ScalarMask>();
    auto inside = std::make_shared<MaskWords>(words(), 0);
    Rests rests;
    const auto next = [&](std::int32_t from, std::uint8_t byte, std::int32_t &to) {
      to = dfa->next(from, byte);
      return to >= 0;
    };
    walk(trie_, longest_, state, next, [&](std::uint32_t node, std::int32_t at) {
      for (TokenId id : trie_.tokens(node)) {
        set_bit(*inside, id);
        ++mask->count;
      }
      if (dfa->accepting(at))
        for (TokenId id : trie_.tokens_below(node))
          rests[at].emplace_back(std::string_view(token(id)).substr(trie_[node].depth), id);
      return true;
    });
    mask->inside = std::move(inside);
    for (auto &[at, texts] : rests)
      mask->exits.push_back({at, TokenTrie(std::move(texts))});
    return mask;
  });
}

void Vocabulary::prepare(const std::shared_ptr<const Dfa> &dfa) const {
  for (std::size_t s = 0; s < dfa->states(); ++s)
    if (const auto state = static_cast<std::int32_t>(s); dfa->broad(state))
      scalar_mask(dfa, state);
}

std::shared_ptr<const ScalarMask> Vocabulary::repeat_mask(const std::shared_ptr<const Dfa> &unit, std::uint8_t end,
                                                          std::int32_t state, std::uint32_t least,
                                                          std::uint32_t most) const {
  // What no token reaches does not matter.
  const auto far = static_cast<std::uint32_t>(longest_ + 1);
  least = std::min(least, far);
  most = std::min(most, far);
  const DfaState from(unit, state);
  return once(repeat_masks_, std::make_tuple(from, end, least, most), [&] {
    const auto all = once(repeats_, std::make_pair(from, end), [&] {
      auto found = std::make_shared<Repeats>();
      struct Place {
        std::int32_t state;
        std::uint16_t units;
        bool ended;
      };
      const auto next = [&](const Place &before, std::uint8_t byte, Place &to) {
        if (before.ended)
          return false;
        if (before.state == 0 && byte == end) {
          to = {0, before.units, true};
          return true;
        }
        to = {unit->next(before.state, byte), before.units, false};
        if (to.state >= 0 && unit->accepting(to.state))
          to = {0, static_cast<std::uint16_t>(before.units + 1), false};
        return to.state >= 0;
      };
      walk(trie_, longest_, Place{state, 0, false}, next, [&](std::uint32_t node, const Place &at) {
        const auto needs = static_cast<std::uint16_t>(at.units + (at.state != 0 ? 1 : 0));
        for (TokenId id : trie_.tokens(node))
          found->tokens.push_back({id, needs, at.ended});
        if (at.ended)
          for (TokenId id : trie_.tokens_below(node))
            found->exits.push_back({id, at.units, trie_[node].depth});
        return !at.ended;
      });
      std::stable_sort(found->tokens.begin(), found->tokens.end(),
                       [](const UnitToken &x, const UnitToken &y) { return x.needs < y.needs; });
      return found;
    });
    auto mask = std::make_shared<ScalarMask>();
    auto inside = std::make_shared<MaskWords>(words(), 0);
    for (const UnitToken &t : all->tokens) {
      if (t.needs > most)
        break;
      if (t.ends && t.needs < least)
        continue;
      set_bit(*inside, t.token);
      ++mask->count;
    }
    mask->inside = std::move(inside);
    std::vector<std::pair<std::string_view, TokenId>> rests;
    for (const UnitExit &e : all->exits)
      if (e.units >= least && e.units <= most)
        rests.emplace_back(std::string_view(token(e.token)).substr(e.at), e.token);
    if (!rests.empty())
      mask->exits.push_back({0, TokenTrie(std::move(rests))});
    return mask;
  });
}

} // namespace toolprm
