// What the builder takes and refuses, and what it costs.
#include <sstream>

#include "check.h"
#include "grammars.h"

using namespace toolprm;

namespace {

std::shared_ptr<const Vocabulary> byte_vocabulary() {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b)
    tokens.emplace_back(1, static_cast<char>(b));
  tokens.emplace_back("<stop>");
  return std::make_shared<const Vocabulary>(tokens, std::vector<TokenId>{256});
}

Matcher start(const GrammarBuilder &b, NodeId root) { return Matcher(b.build(root, false), byte_vocabulary()); }

bool accepts(const Matcher &start, std::string_view text) {
  Matcher m(start);
  return m.accept_bytes(text) && m.is_complete();
}

void automata_are_checked() {
  std::vector<std::int32_t> next(512, -1);
  std::vector<std::uint8_t> accepting{0, 1};
  next['a'] = 1;
  CHECK_EQ(Dfa(next, accepting).states(), 2u);
  CHECK_THROWS(Dfa({}, {}), std::invalid_argument);
  CHECK_THROWS(Dfa(std::span(next).subspan(1), accepting), std::invalid_argument);
  next['b'] = 2;
  CHECK_THROWS(Dfa(next, accepting), std::invalid_argument);
  next['b'] = -2;
  CHECK_THROWS(Dfa(next, accepting), std::invalid_argument);
  next['b'] = -1;
  accepting[1] = 0;
  CHECK_THROWS(Dfa(next, accepting), std::invalid_argument); // nothing is accepted
}

void distances_are_shortest() {
  const auto dfa = strings_dfa({"abcd", "ax", "b"});
  CHECK_EQ(dfa->distance(0), 1u);
  CHECK_EQ(dfa->distance(dfa->next(0, 'a')), 1u);
  CHECK_EQ(dfa->distance(dfa->next(dfa->next(0, 'a'), 'b')), 2u);
  CHECK(dfa->eager(dfa->next(0, 'b')));
  CHECK(!strings_dfa({"1"})->eager(1)); // a number ends with the byte after it
}

void builder_refuses_what_is_missing() {
  GrammarBuilder b;
  const NodeId a = b.literal("a");
  CHECK_THROWS(b.sequence({a, 7}), std::invalid_argument);
  CHECK_THROWS(b.sequence({1}), std::invalid_argument); // itself
  CHECK_THROWS(b.choice({-1}), std::invalid_argument);
  CHECK_THROWS(b.names({{"x", 9}}), std::invalid_argument);
  CHECK_THROWS(b.scalar(nullptr), std::invalid_argument);
  CHECK_THROWS(b.repeat(nullptr, 0, 1), std::invalid_argument);
  CHECK_THROWS(b.array({a, a, a, {}, 9}), std::invalid_argument);
  CHECK_THROWS(b.array({a, a, 9, {}}), std::invalid_argument);
  CHECK_THROWS(b.object({a, a, a, {{{"k"}, 9, false}}, nullptr}), std::invalid_argument);
  CHECK_THROWS(b.object({a, a, a, {{{}, a, false}}, nullptr}), std::invalid_argument);
  CHECK_THROWS(b.object({a, a, a, {}, quoted_dfa("ab")}), std::invalid_argument);          // no value for other keys
  CHECK_THROWS(b.object({a, a, a, {}, strings_dfa({"", "a"}), a}), std::invalid_argument); // no key
  CHECK_THROWS(b.build(9, false), std::invalid_argument);
  CHECK_THROWS(b.build(-1, false), std::invalid_argument);
  CHECK_THROWS(b.define_rule(a, a), std::invalid_argument);
  const NodeId rule = b.declare_rule("r");
  CHECK_THROWS(b.define_rule(rule, 9), std::invalid_argument);
  CHECK_THROWS(b.build(rule, false), std::invalid_argument); // not defined
  CHECK_THROWS(b.repeat(strings_dfa({"", "a"}), 0, 1), std::invalid_argument);
  CHECK_THROWS(b.repeat(strings_dfa({"a"}), 2, 1), ImpossibleGrammar);
}

void names_are_prefix_free() {
  GrammarBuilder b;
  const NodeId a = b.literal("x");
  for (const auto &names : std::vector<std::vector<std::string>>{{"a", "a"}, {"a", "ab"}, {"ab", "a"}, {""}}) {
    std::vector<std::pair<std::string, NodeId>> entries;
    GrammarBuilder::Object object{a, a, a, {}, nullptr};
    for (const auto &name : names) {
      entries.emplace_back(name, a);
      object.properties.push_back({{name}, a, false});
    }
    CHECK_THROWS(b.build(b.names(entries), false), std::invalid_argument);
    CHECK_THROWS(b.build(b.object(object), false), std::invalid_argument);
  }
}

void impossible_grammars_are_refused() {
  GrammarBuilder b;
  const NodeId a = b.literal("a"), comma = b.literal(",");
  const auto refused = [&](NodeId root) { CHECK_THROWS(b.build(root, false), ImpossibleGrammar); };
  refused(b.choice({}));
  refused(b.sequence({a, b.choice({})}));
  refused(b.names({{"x", a}, {"y", b.choice({})}}));
  const NodeId endless = b.declare_rule("endless");
  b.define_rule(endless, b.sequence({a, endless}));
  refused(endless);
  // Bounds that no number of members meets.
  refused(b.array({a, comma, a, {}, a, 3, 2}));
  refused(b.array({a, comma, a, {a}, -1, 2}));
  refused(b.object({a, comma, a, {{{"k"}, a, true}, {{"l"}, a, true}}, nullptr, -1, 0, 1}));
  refused(b.object({a, comma, a, {{{"k"}, a, false}}, nullptr, -1, 2}));
  refused(b.object({a, comma, a, {}, quoted_dfa("a"), a, 3, 2}));
  refused(b.object({a, comma, a, {{{"k"}, b.choice({}), true}}, nullptr}));
  // Where there is a choice, only the impossible option goes.
  CHECK(accepts(start(b, b.sequence({b.choice({b.array({a, comma, a, {}, a, 3, 2}), comma}), b.stop()})), ","));
}

void silent_recursion_is_refused() {
  GrammarBuilder b;
  const NodeId a = b.literal("a"), nothing = b.literal("");
  const auto refused = [&](const std::function<NodeId(NodeId)> &body) {
    const NodeId rule = b.declare_rule("rule");
    b.define_rule(rule, b.choice({a, body(rule)}));
    CHECK_THROWS(b.build(rule, false), ImpossibleGrammar);
  };
  refused([&](NodeId rule) { return rule; });
  refused([&](NodeId rule) { return b.sequence({nothing, rule, a}); });
  refused([&](NodeId rule) { return b.sequence({b.space(), rule, a}); });
  refused([&](NodeId rule) { return b.sequence({b.step(StepKind::kArgValue), rule, a}); });
  refused([&](NodeId rule) { return b.sequence({b.choice({a, nothing}), rule}); });
  refused([&](NodeId rule) { return b.sequence({b.scalar(strings_dfa({"", "a"})), rule}); });
  refused([&](NodeId rule) { return b.sequence({b.repeat(strings_dfa({"a"}), 0, 3), rule}); });
  refused([&](NodeId rule) { return b.sequence({b.object({nothing, a, nothing, {}, nullptr}), rule}); });
  refused([&](NodeId rule) { return b.sequence({b.array({nothing, a, nothing, {}}), rule}); });
  refused([&](NodeId rule) { return b.array({nothing, nothing, a, {}, rule}); });
  // Any number of items that may be empty, with nothing between them.
  CHECK_THROWS(b.build(b.array({a, nothing, a, {}, b.scalar(strings_dfa({"", "a"}))}), false), ImpossibleGrammar);
  // With something between them they are fine.
  const Matcher list = start(b, b.sequence({b.array({a, b.literal(","), a, {}, b.literal("")}), b.stop()}));
  CHECK(accepts(list, "aa") && accepts(list, "a,a") && accepts(list, "a,,,a") && !accepts(list, "a,"));
}

void budgets_hold() {
  {
    GrammarBuilder b(100);
    CHECK_THROWS(b.build(b.literal(std::string(101, 'a')), false), BudgetError);
  }
  {
    GrammarBuilder b(1000);
    for (int i = 0; i < 1000; ++i)
      b.stop();
    CHECK_THROWS(b.stop(), BudgetError);
  }
  { // shared nodes are written out each time
    GrammarBuilder b(100'000);
    NodeId node = b.literal("a");
    for (int i = 0; i < 40; ++i)
      node = b.sequence({node, node});
    CHECK_THROWS(b.build(node, false), BudgetError);
  }
  { // even where nothing is written
    GrammarBuilder b(100'000);
    NodeId node = b.literal("");
    for (int i = 0; i < 60; ++i)
      node = b.sequence({node, node});
    CHECK_THROWS(b.build(node, false), BudgetError);
  }
  { // the keys of an object count too: what lies below a place among them grows as their square
    GrammarBuilder b(1'000'000);
    GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {}, nullptr};
    const NodeId value = b.literal("1");
    for (int i = 0; i < 20'000; ++i)
      object.properties.push_back({{"\"property " + std::to_string(i) + "\": "}, value, false});
    CHECK_THROWS(b.build(b.object(object), false), BudgetError);
  }
}

void nesting_is_bounded() {
  GrammarBuilder b;
  const NodeId open = b.literal("["), comma = b.literal(","), close = b.literal("]");
  NodeId node = b.literal("1");
  const auto deeper = [&](NodeId inner) { return b.array({open, comma, close, {}, b.sequence({inner}), 1, 1}); };
  for (std::uint32_t depth = 1; depth + 4 <= GrammarBuilder::kMaxNesting; depth += 2)
    node = deeper(node);
  const Matcher m = start(b, b.sequence({node, b.stop()})); // compiles without running out of stack
  CHECK_EQ(m.closing().size(), m.closing_bytes());
  CHECK_THROWS(deeper(deeper(node)), BudgetError);
}

void large_bounds_are_cheap() {
  GrammarBuilder b;
  const NodeId open = b.literal("{"), comma = b.literal(","), close = b.literal("}"), one = b.literal("1");
  const std::uint32_t most = kUnbounded - 1;
  for (const NodeId node :
       {b.object({open, comma, close, {{{"\"k\":"}, one, false}}, quoted_dfa("a"), one, most, kUnbounded}),
        b.array({open, comma, close, {}, one, most, kUnbounded}), b.repeat(strings_dfa({"aa"}), most, kUnbounded)}) {
    CHECK_THROWS(b.build(node, false), ImpossibleGrammar); // longer than any text
    CHECK(accepts(start(b, b.sequence({b.choice({node, one}), b.stop()})), "1"));
  }
  // As upper bounds they bound nothing.
  const Matcher m = start(b, b.sequence({b.array({open, comma, close, {}, one, 2, most}), b.stop()}));
  CHECK(accepts(m, "{1,1,1}") && !accepts(m, "{1}"));
  CHECK_EQ(m.closing_bytes(), 5u);
}

// Rules that lean on those before and after them are settled in few rounds, whatever their order.
void long_chains_of_rules_compile() {
  for (const bool forward : {true, false}) {
    GrammarBuilder b;
    const int n = 20'000;
    std::vector<NodeId> rules;
    for (int i = 0; i < n; ++i)
      rules.push_back(b.declare_rule("r"));
    for (int i = 0; i < n; ++i)
      b.define_rule(rules[static_cast<std::size_t>(i)],
                    i == 0 ? b.literal("1") : b.sequence({b.literal("-"), rules[static_cast<std::size_t>(i - 1)]}));
    std::vector<std::pair<std::string, NodeId>> names;
    for (int i = 0; i < n; ++i)
      names.emplace_back(std::to_string(100'000 + i), rules[static_cast<std::size_t>(forward ? i : n - 1 - i)]);
    const auto grammar = b.build(b.sequence({b.names(names), b.stop()}), false);
    CHECK_EQ(grammar->shortest(), 7u);
  }
}

// A union inside a union inside a union: read without recursion.
void nested_unions_are_read_flat() {
  GrammarBuilder b;
  const int n = 9'000;
  std::vector<NodeId> rules;
  for (int i = 0; i < n; ++i)
    rules.push_back(b.declare_rule("r"));
  const NodeId leaf = b.literal("a");
  for (int i = 0; i < n; ++i)
    b.define_rule(rules[static_cast<std::size_t>(i)],
                  i + 1 == n ? leaf : b.choice({rules[static_cast<std::size_t>(i + 1)], b.literal("b")}));
  const Matcher m = start(b, b.sequence({rules[0], b.stop()}));
  CHECK(accepts(m, "a") && accepts(m, "b") && !accepts(m, "c"));
}

// Values that may be empty, one after another, end together without recursion.
void many_empty_values_are_read_flat() {
  GrammarBuilder b;
  std::vector<NodeId> parts(9'000, b.scalar(strings_dfa({"", "a"})));
  parts.push_back(b.literal("."));
  parts.push_back(b.stop());
  const Matcher m = start(b, b.sequence(parts));
  CHECK(accepts(m, "."));
  CHECK(!accepts(m, "b"));
}

// Texts that can be read in exponentially many ways are refused, not read for ever.
void ambiguity_is_bounded() {
  { // without a byte read: R(i) = R(i+1) x | R(i+1) y
    GrammarBuilder b;
    NodeId next = b.literal("a");
    for (int i = 0; i < 40; ++i) {
      const NodeId rule = b.declare_rule("r");
      b.define_rule(rule, b.choice({b.sequence({next, b.literal("x")}), b.sequence({next, b.literal("y")})}));
      next = rule;
    }
    const auto grammar = b.build(b.sequence({next, b.stop()}), false);
    const auto vocabulary = byte_vocabulary();
    CHECK_THROWS(Matcher(grammar, vocabulary), BudgetError);
  }
  { // doubling at every byte
    GrammarBuilder b;
    const NodeId open = b.literal("["), comma = b.literal(","), close = b.literal("]");
    NodeId next = b.literal("a");
    for (int i = 0; i < 40; ++i) {
      const NodeId rule = b.declare_rule("r");
      b.define_rule(rule,
                    b.choice({b.array({open, comma, close, {}, next, 0}), b.array({open, comma, close, {}, next, 1})}));
      next = rule;
    }
    Matcher m = start(b, b.sequence({next, b.stop()}));
    CHECK_THROWS(m.accept_bytes(std::string(40, '[')), BudgetError);
    CHECK_EQ(m.token_count(), 0u); // as it was
    CHECK(m.accept_bytes("[[]]"));
    CHECK(m.is_complete());
  }
}

// Property names are as long as their writers want them.
void long_keys_beside_other_keys() {
  GrammarBuilder b;
  const NodeId one = b.literal(":1");
  const std::string key = '"' + std::string(1'000'000, ' ') + '"';
  const NodeId object =
      b.object({b.literal("{"), b.literal(","), b.literal("}"), {{{key}, one, false}}, quoted_dfa(" !a"), one, 1});
  const Matcher m = start(b, b.sequence({object, b.stop()}));
  CHECK_EQ(m.closing(), std::string("{\"\":1}"));
  CHECK(accepts(m, "{" + key + ":1}"));
  CHECK(!accepts(m, "{" + key + ":1," + key + ":1}"));
  CHECK(accepts(m, "{" + key + ":1,\"  \":1}"));
}

// Keys of a's are followed by 1, others by 2, and what has no value is never begun.
void kinds_of_other_keys() {
  // " : 0 -> 1; a* keeps to 2, any b leads to 3; " ends both, each in a state of its own
  std::vector<std::int32_t> next(std::size_t{6} * 256, -1);
  const auto edge = [&](std::size_t from, char byte, std::int32_t to) {
    next[from * 256 + static_cast<std::uint8_t>(byte)] = to;
  };
  edge(0, '"', 1);
  for (std::size_t s = 1; s <= 2; ++s) {
    edge(s, 'a', 2);
    edge(s, 'b', 3);
  }
  edge(2, '"', 4);
  edge(3, 'a', 3);
  edge(3, 'b', 3);
  edge(3, '"', 5);
  const auto dfa = std::make_shared<const Dfa>(next, std::vector<std::uint8_t>{0, 0, 0, 0, 1, 1});
  const std::vector<std::int32_t> kinds{-1, -1, -1, -1, 0, 1};
  const auto object = [&](GrammarBuilder &b, NodeId first, NodeId second, std::uint32_t min) {
    const NodeId open = b.literal("{"), comma = b.literal(","), close = b.literal("}");
    return b.object({open, comma, close, {}, dfa, -1, min, 2, false, {first, second}, kinds});
  };
  {
    GrammarBuilder b;
    const NodeId one = b.literal(":1"), two = b.literal(":22");
    const Matcher m = start(b, b.sequence({object(b, one, two, 1), b.stop()}));
    CHECK_EQ(m.closing(), std::string("{\"a\":1}"));
    CHECK(accepts(m, "{\"aa\":1,\"ab\":22}"));
    CHECK(!accepts(m, "{\"aa\":22}"));
    CHECK(!accepts(m, "{\"ba\":1}"));
    CHECK(!accepts(m, "{\"a\":1,\"aa\":1,\"b\":22}"));
  }
  {
    GrammarBuilder b;
    const NodeId none = b.choice({}), two = b.literal(":22");
    Matcher m = start(b, b.sequence({object(b, none, two, 1), b.stop()}));
    CHECK_EQ(m.closing().size(), std::string("{\"b\":22}").size());
    CHECK(accepts(m, "{\"ab\":22}"));
    CHECK(m.accept_bytes("{\"a"));
    CHECK(!m.accept_bytes("\""));
  }
  GrammarBuilder b;
  const NodeId part = b.literal("x");
  CHECK_THROWS(b.object({part, part, part, {}, dfa, -1, 0, 2, false, {part}, kinds}), std::invalid_argument);
  CHECK_THROWS(b.object({part, part, part, {}, nullptr, -1, 0, 2, false, {part}, kinds}), std::invalid_argument);
}

} // namespace

int main() {
  automata_are_checked();
  distances_are_shortest();
  builder_refuses_what_is_missing();
  names_are_prefix_free();
  impossible_grammars_are_refused();
  silent_recursion_is_refused();
  budgets_hold();
  nesting_is_bounded();
  large_bounds_are_cheap();
  long_chains_of_rules_compile();
  nested_unions_are_read_flat();
  many_empty_values_are_read_flat();
  ambiguity_is_bounded();
  long_keys_beside_other_keys();
  kinds_of_other_keys();
  return check::report();
}
