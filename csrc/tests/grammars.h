// Grammars for tests, each with a slow reader that says the same of a text without any of the core's code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "toolprm/grammar.h"
#include "toolprm/matcher.h"
#include "toolprm/vocabulary.h"

// The seed of all random numbers of a test: printed, and taken from TOOLPRM_TEST_SEED to run it again.
inline std::uint32_t seed() {
  static const std::uint32_t value = [] {
    const char *given = std::getenv("TOOLPRM_TEST_SEED");
    const auto chosen = given ? static_cast<std::uint32_t>(std::strtoul(given, nullptr, 10))
                              : static_cast<std::uint32_t>(std::random_device()());
    std::printf("TOOLPRM_TEST_SEED=%u\n", chosen);
    std::fflush(stdout);
    return chosen;
  }();
  return value;
}

// 0 to n - 1.
inline std::size_t below(std::mt19937 &random, std::size_t n) {
  return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
}

inline std::string random_text(std::mt19937 &random, std::string_view alphabet, std::size_t least, std::size_t most) {
  std::string text;
  for (std::size_t n = least + below(random, most - least + 1); n > 0; --n)
    text += alphabet[below(random, alphabet.size())];
  return text;
}

inline bool bit(const std::int32_t *row, std::size_t i) {
  return (static_cast<std::uint32_t>(row[i / 32]) >> (i % 32) & 1) != 0;
}

// ---------------------------------------------------------------------------------------------- automata

class DfaTable {
public:
  std::int32_t state(bool accepting) {
    accepting_.push_back(accepting);
    next_.resize(accepting_.size() * 256, -1);
    return static_cast<std::int32_t>(accepting_.size() - 1);
  }
  std::int32_t &edge(std::int32_t from, char byte) {
    return next_[static_cast<std::size_t>(from) * 256 + static_cast<std::uint8_t>(byte)];
  }
  void accept(std::int32_t state) { accepting_[static_cast<std::size_t>(state)] = 1; }
  std::shared_ptr<const toolprm::Dfa> build() const { return std::make_shared<const toolprm::Dfa>(next_, accepting_); }

private:
  std::vector<std::int32_t> next_;
  std::vector<std::uint8_t> accepting_;
};

// Any of the strings.
inline std::shared_ptr<const toolprm::Dfa> strings_dfa(const std::vector<std::string> &strings) {
  DfaTable table;
  table.state(false);
  for (const std::string &text : strings) {
    std::int32_t at = 0;
    for (char c : text) {
      if (table.edge(at, c) < 0) {
        const std::int32_t fresh = table.state(false);
        table.edge(at, c) = fresh;
      }
      at = table.edge(at, c);
    }
    table.accept(at);
  }
  return table.build();
}

// One or more of these bytes.
inline std::shared_ptr<const toolprm::Dfa> digits_dfa(std::string_view alphabet = "0123456789") {
  DfaTable table;
  const std::int32_t start = table.state(false), on = table.state(true);
  for (char c : alphabet)
    table.edge(start, c) = table.edge(on, c) = on;
  return table.build();
}

// Any number of these bytes between quotes.
inline std::shared_ptr<const toolprm::Dfa> quoted_dfa(std::string_view alphabet) {
  DfaTable table;
  const std::int32_t start = table.state(false), in = table.state(false), end = table.state(true);
  table.edge(start, '"') = in;
  for (char c : alphabet)
    table.edge(in, c) = in;
  table.edge(in, '"') = end;
  return table.build();
}

// ---------------------------------------------------------------------------------------------- grammars

// A list of calls: f has the arguments "n" (a number) and "s" (a string), in any order; g takes others too.
inline std::shared_ptr<const toolprm::Grammar> calls_grammar() {
  using namespace toolprm;
  GrammarBuilder b;
  const NodeId number = b.sequence({b.literal(": "), b.scalar(digits_dfa("12"))});
  const NodeId text = b.sequence({b.literal(": "), b.scalar(quoted_dfa("ab, }]"))});
  const auto call = [&](bool others) {
    GrammarBuilder::Object arguments{b.literal("{"),
                                     b.literal(", "),
                                     b.literal("}"),
                                     {{{"\"n\""}, number, false}, {{"\"s\""}, text, false}},
                                     nullptr};
    arguments.arguments = true;
    if (others) {
      arguments.other_key = quoted_dfa("abns");
      arguments.other_value = b.sequence({b.literal(": "), b.choice({b.scalar(digits_dfa("12")), b.literal("null")})});
    }
    return b.sequence({b.step(StepKind::kFuncName), b.literal(", \"arguments\": "), b.object(arguments),
                       b.step(StepKind::kParamFinish), b.literal("}"), b.step(StepKind::kFuncFinish)});
  };
  const NodeId calls =
      b.array({b.literal("["),
               b.literal(", "),
               b.literal("]"),
               {},
               b.sequence({b.literal("{\"name\": "), b.names({{"\"f\"", call(false)}, {"\"g\"", call(true)}})})});
  return b.build(b.sequence({calls, b.step(StepKind::kTotalFinish), b.stop()}), true);
}

// Tokens of calls_grammar(), many of which cross the borders of steps. Two of them stop.
inline std::shared_ptr<const toolprm::Vocabulary> call_vocabulary() {
  static const auto vocabulary = [] {
    std::vector<std::string> tokens{"<stop>"};
    for (char c : std::string("{}[]\":, abnsfglrumet12"))
      tokens.emplace_back(1, c);
    for (const char *t : {"\"}", "\"}}", "}}", "}]", "\"},", "}},", "[]", "[{", "\": ", "1}}]", "\", \"", "null", "ab",
                          "12", "arguments", "name", ", \"", "{\""})
      tokens.emplace_back(t);
    tokens.emplace_back("<other stop>");
    return std::make_shared<const toolprm::Vocabulary>(
        tokens, std::vector<toolprm::TokenId>{0, static_cast<toolprm::TokenId>(tokens.size() - 1)});
  }();
  return vocabulary;
}

// What a text must be. The bytes of digits are "12", those inside quotes "ab".
struct Shape {
  enum Kind {
    kLiteral,
    kStrings,
    kDigits,
    kQuoted,
    kRepeat,
    kSequence,
    kChoice,
    kNames,
    kObject,
    kArray,
    kSpace,
    kRule
  };
  Kind kind = kLiteral;
  std::string text;                 // literal
  std::vector<std::string> strings; // strings; the unit of a repetition; names; keys of an object
  std::vector<Shape> parts;         // of a sequence or choice; after each name; values of an object; prefix of an array
  std::vector<bool> required;       // of an object's keys
  std::vector<Shape> more;          // one: the value after any other key, or the items after the prefix
  std::uint32_t min = 0, max = toolprm::kUnbounded;
  std::size_t rule = 0;
};

struct Description {
  Shape root;
  std::vector<Shape> rules;
};

inline toolprm::NodeId add(toolprm::GrammarBuilder &b, const Shape &shape, const std::vector<toolprm::NodeId> &rules) {
  using namespace toolprm;
  std::vector<NodeId> parts;
  for (const Shape &part : shape.parts)
    parts.push_back(add(b, part, rules));
  const NodeId more = shape.more.empty() ? -1 : add(b, shape.more[0], rules);
  switch (shape.kind) {
  case Shape::kLiteral:
    return b.literal(shape.text);
  case Shape::kStrings:
    return b.scalar(strings_dfa(shape.strings));
  case Shape::kDigits:
    return b.scalar(digits_dfa("12"));
  case Shape::kQuoted:
    return b.scalar(quoted_dfa("ab"));
  case Shape::kRepeat:
    return b.repeat(strings_dfa(shape.strings), shape.min, shape.max);
  case Shape::kSequence:
    return b.sequence(parts);
  case Shape::kChoice:
    return b.choice(parts);
  case Shape::kNames: {
    std::vector<std::pair<std::string, NodeId>> names;
    for (std::size_t i = 0; i < parts.size(); ++i)
      names.emplace_back(shape.strings[i], parts[i]);
    return b.names(names);
  }
  case Shape::kObject: {
    GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {},
                                  nullptr,        more,           shape.min,      shape.max};
    for (std::size_t i = 0; i < parts.size(); ++i)
      object.properties.push_back({{shape.strings[i]}, parts[i], shape.required[i]});
    if (more >= 0)
      object.other_key = quoted_dfa("ab");
    return b.object(std::move(object));
  }
  case Shape::kArray:
    return b.array({b.literal("["), b.literal(","), b.literal("]"), parts, more, shape.min, shape.max});
  case Shape::kSpace:
    return b.space();
  case Shape::kRule:
    break;
  }
  return rules[shape.rule];
}

inline std::shared_ptr<const toolprm::Grammar> build(const Description &d) {
  toolprm::GrammarBuilder b;
  std::vector<toolprm::NodeId> rules;
  for (std::size_t r = 0; r < d.rules.size(); ++r)
    rules.push_back(b.declare_rule("r" + std::to_string(r)));
  for (std::size_t r = 0; r < d.rules.size(); ++r)
    b.define_rule(rules[r], add(b, d.rules[r], rules));
  const toolprm::NodeId root = add(b, d.root, rules);
  return b.build(b.sequence({root, b.stop()}), false);
}

// Reads a text by trying everything.
class Reader {
public:
  Reader(const Description &description, std::string_view text) : d_(description), text_(text) {
    complete = ends(d_.root, 0).contains(text.size());
    viable = more_ || complete;
  }
  bool complete = false; // the text is whole
  bool viable = false;   // it begins one that is

private:
  using Places = std::set<std::size_t>;

  // Where the string ends that begins at a place: nowhere, or there; notes where only the text's end stopped it.
  Places fixed(std::string_view wanted, std::size_t at) {
    const std::string_view rest = text_.substr(at);
    if (rest.starts_with(wanted))
      return {at + wanted.size()};
    more_ = more_ || wanted.starts_with(rest);
    return {};
  }

  template <class Next> static Places each(const Places &places, const Next &next) {
    Places out;
    for (std::size_t at : places)
      out.merge(next(at));
    return out;
  }

  // Any number of these bytes.
  Places run(std::string_view alphabet, std::size_t at) {
    Places out{at};
    while (at < text_.size() && alphabet.find(text_[at]) != std::string_view::npos)
      out.insert(++at);
    more_ = more_ || at == text_.size();
    return out;
  }

  Places quoted(std::size_t at) {
    return each(each(fixed("\"", at), [&](std::size_t i) { return run("ab", i); }),
                [&](std::size_t i) { return fixed("\"", i); });
  }

  Places ends(const Shape &shape, std::size_t at) {
    Places out;
    switch (shape.kind) {
    case Shape::kLiteral:
      return fixed(shape.text, at);
    case Shape::kStrings:
      for (const std::string &text : shape.strings)
        out.merge(fixed(text, at));
      return out;
    case Shape::kDigits:
      out = run("12", at);
      out.erase(at);
      return out;
    case Shape::kQuoted:
      return quoted(at);
    case Shape::kRepeat: {
      Places now{at};
      for (std::uint32_t n = 0; !now.empty(); ++n) {
        if (n >= shape.min)
          out.insert(now.begin(), now.end());
        if (n == shape.max)
          break;
        now = each(now, [&](std::size_t i) {
          Places next;
          for (const std::string &text : shape.strings)
            next.merge(fixed(text, i));
          return next;
        });
      }
      return out;
    }
    case Shape::kSequence:
      out = {at};
      for (const Shape &part : shape.parts)
        out = each(out, [&](std::size_t i) { return ends(part, i); });
      return out;
    case Shape::kChoice:
      for (const Shape &part : shape.parts)
        out.merge(ends(part, at));
      return out;
    case Shape::kNames:
      for (std::size_t i = 0; i < shape.parts.size(); ++i)
        out.merge(each(fixed(shape.strings[i], at), [&](std::size_t j) { return ends(shape.parts[i], j); }));
      return out;
    case Shape::kObject:
      return each(fixed("{", at), [&](std::size_t i) { return members(shape, i, {}, 0); });
    case Shape::kArray:
      return each(fixed("[", at), [&](std::size_t i) { return items(shape, i, 0); });
    case Shape::kSpace:
      return run(" \n\t\r", at);
    case Shape::kRule:
      return ends(d_.rules[shape.rule], at);
    }
    return out;
  }

  // Whether an object with these keys and so many members can still be closed.
  static bool can_close(const Shape &shape, const std::set<std::size_t> &have, std::uint32_t count) {
    std::uint32_t missing = 0, free = 0;
    for (std::size_t i = 0; i < shape.parts.size(); ++i)
      if (!have.contains(i)) {
        ++free;
        missing += shape.required[i] ? 1u : 0u;
      }
    if (count + missing > shape.max)
      return false;
    return !shape.more.empty() || count + free >= shape.min;
  }

  Places members(const Shape &shape, std::size_t at, const std::set<std::size_t> &have, std::uint32_t count) {
    Places out;
    bool all = count >= shape.min;
    for (std::size_t i = 0; i < shape.parts.size(); ++i)
      all = all && (!shape.required[i] || have.contains(i));
    if (all)
      out = fixed("}", at);
    std::vector<std::size_t> next;
    for (std::size_t i = 0; i < shape.parts.size(); ++i) {
      std::set<std::size_t> then = have;
      if (then.insert(i).second && can_close(shape, then, count + 1))
        next.push_back(i);
    }
    const bool other = !shape.more.empty() && can_close(shape, have, count + 1);
    if (next.empty() && !other)
      return out;
    for (std::size_t key : count > 0 ? fixed(",", at) : Places{at}) {
      for (std::size_t i : next) {
        std::set<std::size_t> then = have;
        then.insert(i);
        for (std::size_t value : fixed(shape.strings[i], key))
          for (std::size_t end : ends(shape.parts[i], value))
            out.merge(members(shape, end, then, count + 1));
      }
      if (other)
        for (std::size_t value : quoted(key)) {
          const std::string_view written = text_.substr(key, value - key);
          if (std::find(shape.strings.begin(), shape.strings.end(), written) == shape.strings.end())
            for (std::size_t end : ends(shape.more[0], value))
              out.merge(members(shape, end, have, count + 1));
        }
    }
    return out;
  }

  Places items(const Shape &shape, std::size_t at, std::uint32_t count) {
    Places out;
    if (count >= shape.min)
      out = fixed("]", at);
    if (count >= shape.max || (count >= shape.parts.size() && shape.more.empty()))
      return out;
    const Shape &item = count < shape.parts.size() ? shape.parts[count] : shape.more[0];
    for (std::size_t begin : count > 0 ? fixed(",", at) : Places{at})
      for (std::size_t end : ends(item, begin))
        out.merge(items(shape, end, count + 1));
    return out;
  }

  const Description &d_;
  std::string_view text_;
  bool more_ = false; // the text ended where more could have followed
};

inline Shape random_shape(std::mt19937 &random, int depth, std::size_t rules) {
  Shape shape;
  const auto deeper = [&] { return random_shape(random, depth - 1, rules); };
  switch (depth > 0 ? below(random, 12) : below(random, 4)) {
  case 0:
    shape.kind = Shape::kLiteral;
    shape.text = random_text(random, "ab1", 1, 3);
    break;
  case 1:
    shape.kind = Shape::kStrings;
    for (std::size_t n = 1 + below(random, 3); n > 0; --n)
      shape.strings.push_back(random_text(random, "ab12", 1, 3));
    break;
  case 2:
    shape.kind = Shape::kDigits;
    break;
  case 3:
    shape.kind = Shape::kQuoted;
    break;
  case 4:
    shape.kind = Shape::kRepeat;
    shape.strings = below(random, 2) ? std::vector<std::string>{"a", "b"} : std::vector<std::string>{"ab", "b", "aab"};
    shape.min = static_cast<std::uint32_t>(below(random, 3));
    if (below(random, 2))
      shape.max = shape.min + static_cast<std::uint32_t>(below(random, 3));
    break;
  case 5:
    shape.kind = Shape::kSequence;
    for (std::size_t n = below(random, 4); n > 0; --n)
      shape.parts.push_back(deeper());
    break;
  case 6:
    shape.kind = Shape::kChoice;
    for (std::size_t n = 1 + below(random, 3); n > 0; --n)
      shape.parts.push_back(deeper());
    break;
  case 7: {
    shape.kind = Shape::kNames;
    const std::vector<std::string> all{"aa", "ab", "ba", "bba", "bbb", "1"};
    for (const std::string &name : all)
      if (shape.strings.empty() || below(random, 2)) {
        shape.strings.push_back(name);
        shape.parts.push_back(deeper());
      }
    break;
  }
  case 8:
  case 9: {
    shape.kind = Shape::kObject;
    const std::vector<std::string> all{"\"a\"", "\"ab\"", "\"b\"", "\"\""};
    std::uint32_t needed = 0;
    for (const std::string &key : all)
      if (below(random, 2)) {
        shape.strings.push_back(key);
        shape.parts.push_back(deeper());
        shape.required.push_back(below(random, 3) == 0);
        needed += shape.required.back() ? 1u : 0u;
      }
    if (below(random, 3) == 0)
      shape.more.push_back(deeper());
    const auto most = shape.more.empty() ? static_cast<std::uint32_t>(shape.parts.size()) : 4u;
    if (below(random, 2) && most > 0)
      shape.min = static_cast<std::uint32_t>(below(random, std::min(most, 2u) + 1));
    if (below(random, 2))
      shape.max = std::max({needed, shape.min, static_cast<std::uint32_t>(below(random, 4))});
    break;
  }
  case 10: {
    shape.kind = Shape::kArray;
    for (std::size_t n = below(random, 3); n > 0; --n)
      shape.parts.push_back(deeper());
    if (below(random, 3))
      shape.more.push_back(deeper());
    const auto most = shape.more.empty() ? static_cast<std::uint32_t>(shape.parts.size()) : 3u;
    shape.min = static_cast<std::uint32_t>(below(random, most + 1));
    if (below(random, 2))
      shape.max = shape.min + static_cast<std::uint32_t>(below(random, 3));
    break;
  }
  default:
    if (rules > 0 && below(random, 2)) { // recursion reads a byte first
      shape.kind = Shape::kSequence;
      Shape open, rule;
      open.text = "<";
      rule.kind = Shape::kRule;
      rule.rule = below(random, rules);
      shape.parts = {open, rule};
    } else {
      shape.kind = Shape::kSequence;
      Shape space;
      space.kind = Shape::kSpace;
      shape.parts = {space, deeper()};
    }
  }
  return shape;
}

// Every rule has a choice that ends the recursion.
inline Description random_description(std::mt19937 &random) {
  Description d;
  const std::size_t rules = below(random, 3);
  for (std::size_t r = 0; r < rules; ++r) {
    Shape choice, end;
    choice.kind = Shape::kChoice;
    end.text = random_text(random, "ab", 1, 2);
    choice.parts = {random_shape(random, 1, rules), end};
    d.rules.push_back(choice);
  }
  d.root = random_shape(random, 3, rules);
  return d;
}

// Single bytes, and tokens that cross borders between values, keys and separators. Token 0 stops.
inline std::shared_ptr<const toolprm::Vocabulary> random_vocabulary(std::mt19937 &random, std::size_t size) {
  std::vector<std::string> tokens{"<stop>"};
  const std::string alphabet = "ab12{}[],\"< \n";
  for (char c : alphabet)
    tokens.emplace_back(1, c);
  for (const char *common :
       {"\",", "},", "]}", "{\"", "\"a\"", "\"}", "1,", "[[", "<a", "ab", "12", "\"\"", "1]", "}}"})
    tokens.emplace_back(common);
  while (tokens.size() < size)
    tokens.push_back(random_text(random, alphabet, 2, 4));
  return std::make_shared<const toolprm::Vocabulary>(tokens, std::vector<toolprm::TokenId>{0});
}
