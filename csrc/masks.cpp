// Which tokens are legal in a state. The trie of the vocabulary is walked along what the configurations can read; what
// happens inside a free string or behind it is known for the vocabulary already and only cut off where it differs.
#include <algorithm>
#include <bit>

#include "automaton.h"

namespace toolprm {

namespace {

constexpr std::size_t kFewTokens = 128;           // masks with at most this many tokens are kept as ids
constexpr std::size_t kMostReadings = 50'000'000; // seconds; a few for each node of a large vocabulary are a million
constexpr std::size_t kFewBytes = 24; // so many bytes are looked up one by one, more are looked for among the edges

std::uint32_t count_of(const MaskWords &words) {
  std::uint32_t count = 0;
  for (std::int32_t w : words)
    count += static_cast<std::uint32_t>(std::popcount(static_cast<std::uint32_t>(w)));
  return count;
}

} // namespace

// Puts a mask together.
class StatePool::MaskBuilder {
public:
  MaskBuilder(StatePool &pool, const Vocabulary &vocabulary)
      : pool_(pool), program_(pool.program_), vocabulary_(vocabulary) {}

  std::shared_ptr<const Mask> build(const State &state) {
    const Scratch scratch(*this);
    for (const Config &c : state.configs)
      fill(c);
    if (pool_.complete(state))
      ids_.insert(ids_.end(), vocabulary_.stop_ids().begin(), vocabulary_.stop_ids().end());

    auto mask = std::make_shared<Mask>();
    mask->nodes = nodes_;
    std::sort(ids_.begin(), ids_.end());
    ids_.erase(std::unique(ids_.begin(), ids_.end()), ids_.end());
    if (!own_ && base_) {
      std::erase_if(ids_, [&](TokenId id) { return has_bit(*base_->inside, id); });
      mask->count = base_->count + static_cast<std::uint32_t>(ids_.size());
      if (mask->count > kFewTokens && ids_.size() <= kFewTokens) {
        mask->words = base_->inside;
        mask->few.assign(ids_.begin(), ids_.end());
        return mask;
      }
      own(); // few altogether, or too many beside the shared ones
    } else if (!own_ && ids_.size() <= kFewTokens) {
      mask->count = static_cast<std::uint32_t>(ids_.size());
      mask->few.assign(ids_.begin(), ids_.end());
      return mask;
    }
    MaskWords &words = own();
    for (TokenId id : ids_)
      set_bit(words, id);
    mask->count = count_of(words);
    if (mask->count <= kFewTokens) {
      for (std::size_t w = 0; w < words.size(); ++w)
        for (auto left = static_cast<std::uint32_t>(words[w]); left; left &= left - 1)
          mask->few.push_back(static_cast<TokenId>(w * 32 + static_cast<std::size_t>(std::countr_zero(left))));
    } else {
      mask->words = std::move(own_);
    }
    return mask;
  }

private:
  // Lends the memory of the masks before to a builder: most masks are found faster than memory is.
  class Scratch {
  public:
    explicit Scratch(MaskBuilder &builder) : builder_(builder) { swap(); }
    ~Scratch() { swap(); }
    Scratch(const Scratch &) = delete;

  private:
    void swap() {
      static thread_local std::vector<TokenId> ids;
      static thread_local std::vector<Live> live;
      builder_.ids_.clear();
      builder_.ids_.swap(ids);
      builder_.live_.swap(live);
    }
    MaskBuilder &builder_;
  };

  // The words of this mask alone, with all that shared ones say so far.
  MaskWords &own() {
    if (!own_) {
      own_ = base_ ? std::make_shared<MaskWords>(*base_->inside) : std::make_shared<MaskWords>(vocabulary_.words(), 0);
      base_ = nullptr;
    }
    return *own_;
  }

  void fill(const Config &c) {
    const Instruction &in = program_.code[c.ip];
    const auto state = static_cast<std::int32_t>(c.aux);
    switch (in.op) {
    case Op::kScalar: {
      const auto &dfa = program_.dfas[static_cast<std::size_t>(in.a)];
      if (!dfa->broad(state))
        break;
      std::vector<Live> after; // what may follow the scalar
      pool_.close(c.ip + 1, c.stack, 0, -1, nullptr, after);
      add(vocabulary_.scalar_mask(dfa, state), [&](std::int32_t) { return std::span<const Live>(after); });
      if (dfa->accepting(state))
        walk(vocabulary_.trie(), after);
      return;
    }
    case Op::kRepeat: {
      const RepeatSpec &spec = program_.repeats[static_cast<std::size_t>(in.a)];
      if (spec.end < 0 || !spec.unit->broad(state))
        break;
      std::vector<Live> after;
      pool_.close(c.ip + 2, c.stack, 0, -1, nullptr, after);
      const std::uint32_t least = spec.min > c.count ? spec.min - c.count : 0;
      const std::uint32_t most = spec.max == kUnbounded ? kUnbounded : spec.max - c.count;
      add(vocabulary_.repeat_mask(spec.unit, static_cast<std::uint8_t>(spec.end), state, least, most),
          [&](std::int32_t) { return std::span<const Live>(after); });
      return;
    }
    case Op::kOtherKey: {
      const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
      if (!spec.other_key->broad(state))
        break;
      // Of several kinds of keys those are left out whose value cannot be completed, or not shortly enough.
      if (!spec.other_rest.empty() && (too_deep(c.stack) || std::find(spec.other_rest.begin(), spec.other_rest.end(),
                                                                      kInfinite) != spec.other_rest.end()))
        break;
      std::vector<Live> after;
      MaskBuilder keys(pool_, vocabulary_);
      keys.add(vocabulary_.scalar_mask(spec.other_key, state), [&](std::int32_t end) {
        const std::uint32_t value =
            spec.other_rest.empty()
                ? spec.other_value
                : spec.other_values[static_cast<std::size_t>(spec.other_kinds[static_cast<std::size_t>(end)])];
        after.clear();
        pool_.enter_other(c, value, 0, -1, nullptr, after);
        return std::span<const Live>(after);
      });
      if (c.count > 0 && spec.other_rest.empty())
        keys.remove(spec, c.count - 1, state);
      add(keys);
      return;
    }
    default:
      break;
    }
    const Live from{c, -1};
    walk(vocabulary_.trie(), {&from, 1});
  }

  // Adds what is known of a scalar; after(state): what may follow where it ends in a state.
  template <class After> void add(const std::shared_ptr<const ScalarMask> &known, const After &after) {
    MaskBuilder inside(pool_, vocabulary_);
    inside.base_ = known;
    add(inside);
    for (const ScalarMask::Exit &exit : known->exits)
      walk(exit.rest, after(exit.state));
  }

  void add(const MaskBuilder &other) {
    if (!own_ && !base_ && !other.own_) {
      base_ = other.base_;
    } else if (other.own_ || base_ != other.base_) {
      const MaskWords &theirs = other.own_ ? *other.own_ : *other.base_->inside;
      MaskWords &words = own();
      for (std::size_t w = 0; w < words.size(); ++w)
        words[w] |= theirs[w];
    }
    ids_.insert(ids_.end(), other.ids_.begin(), other.ids_.end());
    nodes_ += other.nodes_;
  }

  // Takes out all tokens that write a declared key from a place in its trie: they are not for a key of any other name.
  void remove(const ObjectSpec &spec, std::uint32_t from, std::int32_t state) {
    const TokenTrie &trie = vocabulary_.trie();
    const KeySet &keys = spec.keys;
    struct Place { // in the trie of keys, the vocabulary's, and the automaton of other keys
      std::uint32_t key, node;
      std::int32_t state;
    };
    std::vector<Place> open{{from, 0, state}};
    while (!open.empty()) {
      const Place at = open.back();
      open.pop_back();
      if (keys.leaf[at.key] >= 0 && spec.other_key->accepting(at.state)) {
        MaskWords &words = own();
        for (TokenId id : trie.tokens_from(at.node)) {
          words[static_cast<std::size_t>(id) / 32] &= ~static_cast<std::int32_t>(1u << (id % 32));
          std::erase(ids_, id);
        }
      }
      for (std::uint32_t e = keys.child_begin[at.key]; e < keys.child_begin[at.key + 1]; ++e) {
        const std::int32_t next = spec.other_key->next(at.state, keys.child_byte[e]);
        if (const std::uint32_t child = trie.child(at.node, keys.child_byte[e]); child && next >= 0)
          open.push_back({keys.child_node[e], child, next});
      }
    }
  }

  // Adds the tokens of a trie that the configurations read.
  void walk(const TokenTrie &trie, std::span<const Live> from) {
    live_.assign(from.begin(), from.end());
    descend(trie, 0, 0);
  }

  // The tokens below a node; the configurations there are those of live_ from `begin` on.
  void descend(const TokenTrie &trie, std::uint32_t node, std::size_t begin) {
    for (;;) { // down literals, and keys that no other one shares: there is one way
      if (trie.is_leaf(node))
        return;
      if (live_.size() != begin + 1)
        break;
      Config &c = live_[begin].config;
      const Instruction &in = program_.code[c.ip];
      if (in.op == Op::kByte) {
        node = trie.child(node, in.byte);
        if (node == 0)
          return;
        const Config read = c;
        live_.pop_back();
        pool_.close(read.ip + 1, read.stack, 0, -1, nullptr, live_);
      } else if (in.op == Op::kKey || in.op == Op::kNames) {
        const KeySet &keys = in.op == Op::kKey ? program_.objects[static_cast<std::size_t>(in.a)].keys
                                               : program_.name_sets[static_cast<std::size_t>(in.a)];
        const std::uint32_t edge = keys.child_begin[c.aux];
        if (keys.child_begin[c.aux + 1] != edge + 1 || keys.leaf[keys.child_node[edge]] >= 0)
          break;
        node = trie.child(node, keys.child_byte[edge]);
        if (node == 0)
          return;
        c.aux = keys.child_node[edge];
      } else {
        break;
      }
      emit(trie, node);
    }
    // Values that may be over: what comes after them reads too.
    for (std::size_t i = begin; i < live_.size(); ++i) {
      const Config c = live_[i].config;
      const Instruction &in = program_.code[c.ip];
      if (in.op == Op::kScalar &&
          program_.dfas[static_cast<std::size_t>(in.a)]->accepting(static_cast<std::int32_t>(c.aux))) {
        pool_.close(c.ip + 1, c.stack, 0, -1, nullptr, live_);
        check_ambiguity(live_.size() - begin);
      }
    }
    const std::size_t end = live_.size();
    std::bitset<256> bytes;
    for (std::size_t i = begin; i < end; ++i)
      pool_.add_bytes(live_[i].config, bytes);
    const auto edges = trie.edges(node);
    if (edges.size() > kFewBytes && bytes.count() <= kFewBytes) {
      for (std::size_t b = bytes._Find_first(); b < 256; b = bytes._Find_next(b))
        if (const std::uint32_t child = trie.child(node, static_cast<std::uint8_t>(b)))
          visit(trie, child, static_cast<std::uint8_t>(b), begin, end);
    } else {
      for (const TokenTrie::Edge &edge : edges)
        if (bytes[edge.byte])
          visit(trie, edge.node, edge.byte, begin, end);
    }
  }

  void visit(const TokenTrie &trie, std::uint32_t child, std::uint8_t byte, std::size_t begin, std::size_t end) {
    live_.resize(end);
    readings_ += end - begin;
    if (readings_ > kMostReadings)
      throw BudgetError("a mask takes more than " + std::to_string(kMostReadings) +
                        " readings of bytes: the alternatives of the schema overlap too much");
    for (std::size_t i = begin; i < end; ++i) {
      const Live now = live_[i]; // a copy: reading adds to live_
      pool_.read(now.config, -1, byte, 0, nullptr, live_);
    }
    if (live_.size() == end)
      return;
    if (live_.size() > end + 1) { // configurations that met again are one
      const auto fresh = live_.begin() + static_cast<std::ptrdiff_t>(end);
      std::sort(fresh, live_.end(), [](const Live &a, const Live &b) { return a.config < b.config; });
      live_.erase(std::unique(fresh, live_.end(), [](const Live &a, const Live &b) { return a.config == b.config; }),
                  live_.end());
      check_ambiguity(live_.size() - end);
    }
    emit(trie, child);
    descend(trie, child, end);
    live_.resize(end);
  }

  void emit(const TokenTrie &trie, std::uint32_t node) {
    ++nodes_;
    for (TokenId id : trie.tokens(node))
      ids_.push_back(id);
  }

  StatePool &pool_;
  const Program &program_;
  const Vocabulary &vocabulary_;
  std::shared_ptr<const ScalarMask> base_; // shared words, as long as there are no others
  std::shared_ptr<MaskWords> own_;
  std::uint32_t nodes_ = 0;
  std::size_t readings_ = 0;
  std::vector<TokenId> ids_; // further tokens, twice perhaps
  std::vector<Live> live_;   // one run of configurations a level of the walk
};

std::shared_ptr<const Mask> StatePool::mask(const State &state, const Vocabulary &vocabulary) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state.mask)
      return state.mask;
  }
  auto mask = MaskBuilder(*this, vocabulary).build(state);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!state.mask) {
    bytes_ += mask->few.size() * sizeof(TokenId) + 96;
    if (mask->words && mask->words.use_count() == 1)
      bytes_ += mask->words->size() * sizeof(std::int32_t);
    state.mask = std::move(mask);
  }
  return state.mask;
}

std::vector<TokenId> StatePool::plain_mask(const State &state, const Vocabulary &vocabulary) {
  const TokenTrie &trie = vocabulary.trie();
  std::vector<TokenId> legal;
  std::vector<const State *> path{&state};
  for (std::uint32_t node = 1; node < trie.size();) {
    path.resize(trie[node].depth);
    const State *next = advance(*path.back(), trie[node].byte);
    if (!next) {
      node = trie[node].skip;
      continue;
    }
    legal.insert(legal.end(), trie.tokens(node).begin(), trie.tokens(node).end());
    path.push_back(next);
    ++node;
  }
  if (complete(state))
    legal.insert(legal.end(), vocabulary.stop_ids().begin(), vocabulary.stop_ids().end());
  std::sort(legal.begin(), legal.end());
  return legal;
}

} // namespace toolprm
