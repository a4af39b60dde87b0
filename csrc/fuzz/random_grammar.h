// Grammars and vocabularies out of a fuzzer's choices: all kinds of nodes, as a caller may put them together.
#pragma once

#include <cstdarg>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "source.h"
#include "toolprm/grammar.h"
#include "toolprm/vocabulary.h"

// Few bytes, so that tokens and texts often meet; the last two are no ASCII.
inline constexpr std::string_view kAlphabet = "ab1{}[],:\" <\n\\\xc3\xa9";

class RandomGrammar {
public:
  // Throws what the builder throws: BudgetError, ImpossibleGrammar, std::invalid_argument.
  static std::shared_ptr<const toolprm::Grammar> make(Source &source) {
    RandomGrammar random(source);
    return random.build();
  }

private:
  explicit RandomGrammar(Source &source) : s_(source), b_(64 + 16 * source.below(256)) {}

  std::shared_ptr<const toolprm::Grammar> build() {
    using namespace toolprm;
    for (std::size_t n = s_.below(4); n > 0; --n)
      rules_.push_back(b_.declare_rule("rule"));
    for (NodeId rule : rules_) { // most have an alternative that ends the recursion
      const NodeId body = node(2);
      const std::string end = s_.rarely(4) ? "" : s_.text(kAlphabet, 1, 2);
      b_.define_rule(rule, end.empty() ? body : b_.choice({body, b_.literal(end)}));
      trace(rule, "rule %d or '%s'", body, end.c_str());
    }
    const bool calls = s_.below(2) == 1;
    const NodeId value = node(4);
    const NodeId root = trace(b_.sequence({value, step(), b_.stop(), step()}), "root %d, then steps", value);
    return b_.build(root, calls, s_.rarely(8) ? 4096 : std::size_t{1} << 24);
  }

  // Trimmed where it is not rare: every state has an edge to a later one, and the last one accepts.
  std::shared_ptr<const toolprm::Dfa> dfa(bool may_be_empty) {
    const std::size_t states = 1 + s_.below(5);
    const bool wild = s_.rarely(16);
    std::vector<std::int32_t> next(states * 256, -1);
    std::vector<std::uint8_t> accepting(states, 0);
    accepting[states - 1] = states > 1 || may_be_empty || wild ? 1 : 0;
    const auto edge = [&](std::size_t from, std::size_t to) {
      const auto first = static_cast<std::uint8_t>(kAlphabet[s_.below(kAlphabet.size())]);
      // A broad range of bytes, as strings have, or one byte.
      const std::size_t last = s_.rarely(4) ? std::min<std::size_t>(255, first + 64u) : first;
      for (std::size_t b = first; b <= last; ++b)
        next[from * 256 + b] = static_cast<std::int32_t>(to);
    };
    for (std::size_t from = 0; from < states; ++from)
      for (std::size_t n = s_.below(3); n > 0; --n)
        edge(from, s_.below(states));
    for (std::size_t from = 0; from + 1 < states; ++from) {
      if (!wild)
        edge(from, from + 1 + s_.below(states - from - 1));
      if ((may_be_empty || from > 0) && s_.rarely(4))
        accepting[from] = 1;
    }
    if (states == 1 && accepting[0] == 0) { // one byte
      next.resize(512, -1);
      accepting = {0, 1};
      edge(0, 1);
    }
    return std::make_shared<const toolprm::Dfa>(next, accepting);
  }

  std::uint32_t count() { return s_.rarely(16) ? 100'000 : static_cast<std::uint32_t>(s_.below(4)); }
  std::uint32_t most(std::uint32_t least) {
    return s_.below(2) ? toolprm::kUnbounded : s_.rarely(16) ? count() : least + count();
  }

  // Prefix-free, for none holds a quote but at its end.
  std::string name() { return s_.rarely(16) ? s_.text(kAlphabet, 0, 3) : s_.text("ab1", 0, 3) + '"'; }

  toolprm::NodeId step() {
    if (s_.below(2) == 0)
      return trace(b_.sequence({}), "nothing");
    return trace(b_.step(static_cast<toolprm::StepKind>(s_.below(5)), static_cast<std::uint32_t>(s_.below(3))), "step");
  }

  // What stands around values: mostly a byte of its own.
  toolprm::NodeId mark(const std::string &text) {
    return s_.rarely(8) ? node(0) : trace(b_.literal(text), "literal '%s'", text.c_str());
  }

  std::vector<toolprm::NodeId> nodes(std::size_t least, std::size_t most, int depth) {
    std::vector<toolprm::NodeId> out;
    for (std::size_t n = least + s_.below(most - least + 1); n > 0; --n)
      out.push_back(node(depth));
    return out;
  }

  toolprm::NodeId node(int depth) {
    using namespace toolprm;
    switch (depth > 0 && !s_.done() ? s_.below(12) : s_.below(6)) {
    case 0: {
      const std::string text = s_.text(kAlphabet, 0, 3);
      return trace(b_.literal(text), "literal '%s'", text.c_str());
    }
    case 1:
    case 2: {
      const auto automaton = dfa(true);
      return trace(b_.scalar(automaton), "scalar%s", show(*automaton).c_str());
    }
    case 3: {
      const std::uint32_t min = count();
      const auto unit = dfa(s_.rarely(32));
      const std::uint32_t max = most(min);
      return trace(b_.repeat(unit, min, max), "repeat %u..%u of%s", min, max, show(*unit).c_str());
    }
    case 4:
      return trace(b_.space(), "space");
    case 5:
      return step();
    case 6: {
      const auto parts = nodes(0, 3, depth - 1);
      return trace(b_.sequence(parts), "sequence%s", list(parts).c_str());
    }
    case 7: {
      const auto options = nodes(0, 3, depth - 1);
      return trace(b_.choice(options), "choice%s", list(options).c_str());
    }
    case 8: {
      std::vector<std::pair<std::string, NodeId>> entries;
      std::string told;
      for (std::size_t n = 1 + s_.below(3); n > 0; --n) {
        entries.emplace_back(std::string(n, 'b') + name(), node(depth - 1));
        told += " '" + entries.back().first + "' " + std::to_string(entries.back().second);
      }
      return trace(b_.names(std::move(entries)), "names%s", told.c_str());
    }
    case 9: {
      GrammarBuilder::Object object;
      object.open = mark("{");
      object.separator = mark(",");
      object.close = mark("}");
      const std::size_t wide = s_.rarely(16) ? 70 : 0; // a set of properties that takes two words
      for (std::size_t n = s_.below(4) + wide; n > 0; --n) {
        const std::string key = '"' + (n > 4 ? "1" + std::to_string(n) + '"' : std::string(n, 'b') + name());
        object.properties.push_back({{key}, n > 4 ? b_.literal("a") : node(depth - 1), s_.rarely(3)});
        if (n <= 4 && s_.rarely(4))
          object.properties.back().spellings.push_back("\\" + std::string(n, 'a') + '"');
      }
      if (s_.below(2)) {
        object.other_key = s_.below(2) ? dfa(s_.rarely(32)) : quoted();
        if (s_.rarely(4)) // of several kinds, by the state that the key ends in
          several_kinds(object, depth);
        else
          object.other_value = node(depth - 1);
      }
      object.min = s_.below(2) ? 0 : count();
      object.max = most(object.min);
      object.arguments = s_.below(2) == 1;
      std::string told;
      for (const auto &property : object.properties)
        told += " '" + property.spellings[0] + (property.required ? "'! " : "' ") + std::to_string(property.value);
      if (object.other_key)
        told +=
            " other" + show(*object.other_key) + " " + std::to_string(object.other_value) + list(object.other_values);
      const auto [open, separator, close] = std::tuple(object.open, object.separator, object.close);
      const auto [min, max] = std::pair(object.min, object.max);
      return trace(b_.object(std::move(object)), "object %d %d %d, %u..%u:%s", open, separator, close, min, max,
                   told.c_str());
    }
    case 10: {
      GrammarBuilder::Array array;
      array.open = mark("[");
      array.separator = mark(",");
      array.close = mark("]");
      array.prefix = nodes(0, 2, depth - 1);
      array.item = s_.rarely(3) ? -1 : node(depth - 1);
      array.min = s_.below(2) ? 0 : count();
      array.max = most(array.min);
      const std::string told = list(array.prefix) + " then " + std::to_string(array.item);
      const auto [open, separator, close] = std::tuple(array.open, array.separator, array.close);
      const auto [min, max] = std::pair(array.min, array.max);
      return trace(b_.array(std::move(array)), "array %d %d %d, %u..%u:%s", open, separator, close, min, max,
                   told.c_str());
    }
    default:
      if (rules_.empty())
        return b_.literal("1");
      const NodeId rule = rules_[s_.below(rules_.size())];
      if (s_.rarely(8))
        return rule;
      return trace(b_.sequence({b_.literal("<"), rule}), "< and rule %d", rule); // most recursion reads a byte first
    }
  }

  void several_kinds(toolprm::GrammarBuilder::Object &object, int depth) {
    object.other_values = nodes(1, 3, depth - 1);
    for (std::size_t state = 0; state < object.other_key->states(); ++state)
      object.other_kinds.push_back(object.other_key->accepting(static_cast<std::int32_t>(state))
                                       ? static_cast<std::int32_t>(s_.below(object.other_values.size()))
                                       : -1);
    object.properties.clear(); // the automaton would have to leave their keys out
  }

  static std::shared_ptr<const toolprm::Dfa> quoted() {
    std::vector<std::int32_t> next(3 * 256, -1);
    next['"'] = 1;
    for (std::size_t b = 0; b < 256; ++b)
      next[256 + b] = b == '"' ? 2 : 1;
    return std::make_shared<const toolprm::Dfa>(next, std::vector<std::uint8_t>{0, 0, 1});
  }

  // TOOLPRM_FUZZ_TRACE=1 in the environment prints the nodes, children before what holds them.
  [[gnu::format(printf, 3, 4)]] toolprm::NodeId trace(toolprm::NodeId id, const char *format, ...) const {
    static const bool on = std::getenv("TOOLPRM_FUZZ_TRACE") != nullptr;
    if (on) {
      std::fprintf(stderr, "  node %d = ", id);
      std::va_list arguments;
      va_start(arguments, format);
      std::vfprintf(stderr, format, arguments);
      va_end(arguments);
      std::fputc('\n', stderr);
    }
    return id;
  }
  static std::string list(const std::vector<toolprm::NodeId> &ids) {
    std::string out;
    for (toolprm::NodeId id : ids)
      out += " " + std::to_string(id);
    return out;
  }
  static std::string show(const toolprm::Dfa &dfa) {
    std::string out;
    for (std::size_t s = 0; s < dfa.states(); ++s) {
      const auto state = static_cast<std::int32_t>(s);
      out += " [" + std::to_string(s) + (dfa.accepting(state) ? "!" : "");
      for (unsigned b = 0; b < 256; ++b)
        if (const std::int32_t next = dfa.next(state, static_cast<std::uint8_t>(b)); next >= 0)
          if (b == 0 || b == 255 || kAlphabet.find(static_cast<char>(b)) != std::string_view::npos)
            out += std::string(" ") + static_cast<char>(b) + ">" + std::to_string(next);
      out += "]";
    }
    return out;
  }

  Source &s_;
  toolprm::GrammarBuilder b_;
  std::vector<toolprm::NodeId> rules_;
};

// The alphabet's bytes as tokens (not always all of them), longer ones, empty ones, doubles and one or two that stop.
inline std::shared_ptr<const toolprm::Vocabulary> random_vocabulary(Source &source, bool all_bytes) {
  std::vector<std::string> tokens{"<stop>"};
  for (char c : kAlphabet)
    if (all_bytes || !source.rarely(16))
      tokens.emplace_back(1, c);
  for (std::size_t n = source.below(32); n > 0; --n)
    tokens.push_back(source.text(kAlphabet, source.rarely(8) ? 0 : 2, 5));
  if (source.rarely(4)) // so many tokens that the masks of free strings are kept as words, and shared
    for (unsigned b = 0; b < 256; ++b) {
      tokens.emplace_back(1, static_cast<char>(b));
      if (b % 16 == 1)
        for (char c : kAlphabet)
          tokens.push_back({static_cast<char>(b), c, '"'});
    }
  std::vector<toolprm::TokenId> stops{0};
  if (source.rarely(4))
    stops.push_back(static_cast<toolprm::TokenId>(tokens.size() - 1));
  return std::make_shared<const toolprm::Vocabulary>(std::move(tokens), std::move(stops));
}
