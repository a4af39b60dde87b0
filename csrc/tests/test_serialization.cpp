// Serialised grammars: they come back as they were, and what is not one is refused.
#include <algorithm>
#include <cstring>
#include <thread>

#include "check.h"
#include "grammars.h"
#include "sealed.h"

using namespace toolprm;

namespace {

using Bytes = std::vector<std::byte>;

// What deserialize() says of bytes that it refuses.
std::string refusal(std::span<const std::byte> bytes) {
  try {
    Grammar::deserialize(bytes);
  } catch (const MalformedGrammar &error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

std::string describe(const std::vector<Step> &steps) {
  std::string out;
  for (const Step &s : steps)
    out += std::string(step_kind_name(s.kind)) + ' ' + std::to_string(s.start) + ' ' + std::to_string(s.end) + ' ' +
           s.path + ' ' + s.text + ' ' + std::to_string(s.value) + '\n';
  return out;
}

void walk_alike(const std::shared_ptr<const Grammar> &one, const std::shared_ptr<const Grammar> &other,
                const std::shared_ptr<const Vocabulary> &vocabulary, std::mt19937 &random) {
  CHECK_EQ(one->instructions(), other->instructions());
  CHECK_EQ(one->shortest(), other->shortest());
  Matcher a(one, vocabulary), b(other, vocabulary);
  std::vector<std::int32_t> row(vocabulary->words()), same(row);
  for (int step = 0; step < 40 && !a.is_stopped(); ++step) {
    a.fill_mask(row);
    b.fill_mask(same);
    CHECK(row == same);
    CHECK_EQ(a.closing(), b.closing());
    CHECK_EQ(a.is_over(), b.is_over());
    std::vector<TokenId> legal;
    for (std::size_t t = 0; t < vocabulary->size(); ++t)
      if (bit(row.data(), t))
        legal.push_back(static_cast<TokenId>(t));
    if (legal.empty())
      break;
    const TokenId token = legal[below(random, legal.size())];
    std::vector<Step> steps, as;
    CHECK(a.accept(token, &steps) && b.accept(token, &as));
    CHECK_EQ(describe(steps), describe(as));
  }
  CHECK_EQ(a.text(), b.text());
}

void calls_come_back() {
  std::mt19937 random(seed());
  const auto grammar = calls_grammar();
  const Bytes bytes = grammar->serialize();
  CHECK(bytes == grammar->serialize());
  CHECK(bytes == calls_grammar()->serialize()); // equal grammars, equal bytes
  const auto again = Grammar::deserialize(bytes);
  CHECK(again->serialize().size() < bytes.size()); // equal automata are one by now
  CHECK(Grammar::deserialize(again->serialize())->serialize() == again->serialize());
  for (int i = 0; i < 20; ++i)
    walk_alike(grammar, again, call_vocabulary(), random);
}

void random_grammars_come_back() {
  std::mt19937 random(seed());
  int built = 0;
  for (int i = 0; i < 400; ++i) {
    const Description description = random_description(random);
    std::shared_ptr<const Grammar> grammar;
    try {
      grammar = build(description);
    } catch (const std::exception &) {
      continue;
    }
    ++built;
    const auto again = Grammar::deserialize(grammar->serialize());
    const auto vocabulary = random_vocabulary(random, 60);
    for (int walks = 0; walks < 3; ++walks)
      walk_alike(grammar, again, vocabulary, random);
    CHECK(Grammar::deserialize(again->serialize())->serialize() == again->serialize());
  }
  CHECK(built > 100);
}

// All that a builder takes, in one grammar.
void every_kind_of_node_comes_back() {
  std::mt19937 random(seed());
  GrammarBuilder b;
  b.literal("nobody asks for this one");
  const NodeId rule = b.declare_rule("list");
  GrammarBuilder::Object wide{b.literal("{"), b.literal(","), b.literal("}"), {}, nullptr};
  wide.properties = {{{"\"a\":", "\"\\u0061\":"}, b.scalar(digits_dfa("12")), true},
                     {{"\"b\":"}, b.repeat(digits_dfa("ab"), 0, 2), false}};
  wide.min = 1;
  wide.max = 2;
  GrammarBuilder::Object kinds{b.literal("{"), b.literal(","), b.literal("}"), {}, strings_dfa({"a:", "b:"})};
  kinds.other_values = {b.literal("1"), b.literal("2")};
  std::int32_t kind = 0;
  for (std::size_t s = 0; s < kinds.other_key->states(); ++s)
    kinds.other_kinds.push_back(kinds.other_key->accepting(static_cast<std::int32_t>(s)) ? kind++ : -1);
  DfaTable pairs; // comes back to its start
  const std::int32_t even = pairs.state(false), odd = pairs.state(false), end = pairs.state(true);
  pairs.edge(even, 'a') = odd;
  pairs.edge(odd, 'b') = even;
  pairs.edge(even, '1') = end;
  const NodeId items = b.array({b.literal("["), b.literal(","), b.literal("]"), {b.literal("null")}, rule, 0, 3});
  b.define_rule(rule, b.choice({b.literal("1"), b.object(wide), b.object(kinds), items,
                                b.sequence({b.literal("<"), b.repeat(pairs.build(), 1, kUnbounded), b.literal(">")}),
                                b.names({{"name ", b.space()}, {"mane ", b.step(StepKind::kArgValue, 1)}})}));
  const auto grammar = b.build(b.sequence({rule, b.stop(), b.step(StepKind::kTotalFinish)}), false);
  const Bytes bytes = grammar->serialize();
  CHECK(std::search(bytes.begin(), bytes.end(), reinterpret_cast<const std::byte *>("nobody"),
                    reinterpret_cast<const std::byte *>("nobody") + 6) == bytes.end());
  const auto again = Grammar::deserialize(bytes);
  for (int i = 0; i < 50; ++i)
    walk_alike(grammar, again, random_vocabulary(random, 80), random);
}

// A rule may be defined anew after a grammar was built from it: that grammar stays what it was.
void what_was_built_stays() {
  GrammarBuilder b;
  const NodeId rule = b.declare_rule("value");
  b.define_rule(rule, b.literal("a"));
  const NodeId root = b.sequence({rule, b.stop()});
  const auto grammar = b.build(root, false);
  const Bytes bytes = grammar->serialize();
  b.define_rule(rule, b.literal("b"));
  CHECK(grammar->serialize() == bytes);
  CHECK(b.build(root, false)->serialize() != bytes);
}

void whatever_is_cut_off_or_damaged_is_refused() {
  const Bytes bytes = calls_grammar()->serialize();
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK(!refusal(std::span(bytes).first(size)).empty());
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  CHECK(mentions(refusal(longer), "bytes after its head"));
  CHECK(mentions(refusal(sealed(longer)), "something follows"));
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    Bytes flipped = bytes;
    flipped[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    CHECK(!refusal(flipped).empty());
  }
  CHECK(mentions(refusal({}), "do not begin"));
  Bytes newer = bytes;
  newer[8] = std::byte{2};
  CHECK(mentions(refusal(newer), "version 2"));
  Bytes damaged = bytes;
  damaged.back() ^= std::byte{1};
  CHECK(mentions(refusal(damaged), "checksum"));
}

// Somebody who makes bytes by hand also makes their checksum: what is read is then a grammar, or refused as one.
void whatever_is_forged_is_a_grammar_or_refused() {
  std::mt19937 random(seed());
  const Bytes bytes = calls_grammar()->serialize();
  int taken = 0, refused = 0;
  for (int i = 0; i < 4000; ++i) {
    Bytes forged = bytes;
    for (std::size_t n = 1 + below(random, 3); n > 0; --n) {
      const std::size_t at = kHead + below(random, forged.size() - kHead);
      switch (below(random, 3)) {
      case 0:
        forged[at] = static_cast<std::byte>(below(random, 256));
        break;
      case 1:
        forged.erase(forged.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      default:
        forged.insert(forged.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::byte>(below(random, 16)));
      }
    }
    std::shared_ptr<const Grammar> grammar;
    try {
      grammar = Grammar::deserialize(sealed(forged), 100'000);
    } catch (const MalformedGrammar &) {
      ++refused;
      continue;
    } catch (const BudgetError &) {
      ++refused;
      continue;
    }
    ++taken;
    try {
      walk_alike(grammar, Grammar::deserialize(grammar->serialize()), call_vocabulary(), random);
    } catch (const BudgetError &) { // a text can be read in too many ways
    }
  }
  CHECK(taken > 100 && refused > 100);
}

void forgeries_have_a_reason() {
  const auto forged = [](std::initializer_list<int> body) {
    Bytes bytes = calls_grammar()->serialize();
    bytes.resize(kHead);
    for (int b : body)
      bytes.push_back(static_cast<std::byte>(b));
    return refusal(sealed(bytes));
  };
  CHECK(mentions(forged({}), "ends early"));
  CHECK(mentions(forged({0, 0, 0, 0}), "no node 0"));                                  // a root that is not there
  CHECK(mentions(forged({0, 1, 99}), "kind of node 99"));                              //
  CHECK(mentions(forged({0, 1, 1, 0}), "an automaton 0"));                             // a scalar without one
  CHECK(mentions(forged({0, 1, 3, 1, 0, 0, 0}), "no node 0"));                         // a sequence of itself
  CHECK(mentions(forged({0, 0xff, 0xff, 0xff, 0xff, 0x7f}), "more than 32 bits"));     //
  CHECK(mentions(forged({0, 0xff, 0xff, 0xff, 0xff, 0x0f}), "a count of 4294967295")); //
  CHECK(mentions(forged({0, 1, 11, 0, 0, 0}), "leads back"));                          // a rule of itself
  CHECK(mentions(forged({0, 1, 4, 0, 0, 0}), "no finite value"));                      // a choice of nothing
  for (auto body : {std::initializer_list<int>{0, 1, 0, 1, 'a', 0, 0},                 // no stop
                    {0, 3, 10, 0, 1, 'a', 3, 2, 0, 1, 2, 0},                           // a text behind it
                    {0, 3, 10, 0, 1, 'a', 4, 2, 0, 1, 2, 0},                           // at the end of one option alone
                    {0, 4, 0, 1, 'a', 10, 7, 0, 0, 1, 0, 0, 0, 1, 3, 2, 2, 1, 3, 0}})  // in an array
    CHECK(mentions(forged(body), "stop token"));
  CHECK_EQ(forged({0, 3, 0, 1, 'a', 10, 3, 2, 0, 1, 2, 0}), "");
  CHECK_EQ(forged({0, 5, 10, 8, 4, 0, 3, 1, 1, 3, 2, 0, 2, 4, 1, 3, 4, 0}), "");          // a stop, steps, in a choice
  CHECK(mentions(forged({1, 1, 0x80, 2, 0, 0, 1, 0, 0, 0, 0}), "leads nowhere"));         // an automaton without an end
  CHECK(mentions(forged({1, 1, 0x80, 2, 0, 1, 1, 1, 1, 2, 0, 0, 1, 0, 0}), "its start")); // a unit that returns
}

void budgets_hold() {
  const Bytes bytes = calls_grammar()->serialize();
  CHECK_THROWS(Grammar::deserialize(bytes, 100), BudgetError);
  // So many states as memory for them would hurt: said before any is read.
  const auto automaton_of = [&](std::initializer_list<int> states) {
    Bytes forged(bytes.begin(), bytes.begin() + kHead);
    forged.push_back(std::byte{1});
    for (int b : states)
      forged.push_back(static_cast<std::byte>(b));
    return Grammar::deserialize(sealed(forged));
  };
  CHECK_THROWS(automaton_of({0xff, 0xff, 0xff, 0xff, 0x0f}), BudgetError);
  CHECK_THROWS(automaton_of({0xf0, 0xa2, 0x04}), BudgetError);      // 70,000
  CHECK_THROWS(automaton_of({0xe0, 0xd4, 0x03}), MalformedGrammar); // 60,000, of which there are none
}

// A string that most tokens go on with: what a vocabulary computes once for all grammars.
std::shared_ptr<const Grammar> string_grammar(const char *key) {
  std::string most;
  for (int c = 32; c < 127; ++c)
    if (c != '"')
      most += static_cast<char>(c);
  GrammarBuilder b;
  return b.build(b.sequence({b.literal(key), b.scalar(quoted_dfa(most)), b.stop()}), false);
}

void automata_are_shared() {
  std::vector<std::string> tokens{"<stop>"};
  for (int c = 32; c < 127; ++c) {
    tokens.emplace_back(1, static_cast<char>(c));
    tokens.emplace_back(2, static_cast<char>(c));
  }
  const auto vocabulary = std::make_shared<const Vocabulary>(tokens, std::vector<TokenId>{0});
  std::vector<std::shared_ptr<const Mask>> masks;
  for (const char *key : {"a:", "b:"}) {
    Matcher m(Grammar::deserialize(string_grammar(key)->serialize()), vocabulary);
    CHECK(m.accept_bytes(std::string(key) + '"'));
    masks.push_back(m.mask());
  }
  CHECK(masks[0]->words != nullptr && masks[0]->words == masks[1]->words);
}

void threads_may_read_at_once() {
  const Bytes one = string_grammar("a:")->serialize(), other = calls_grammar()->serialize();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i)
        Grammar::deserialize((i + t) % 2 ? one : other);
    });
  for (std::thread &thread : threads)
    thread.join();
  CHECK_EQ(Grammar::deserialize(one)->shortest(), 4u);
}

} // namespace

int main() {
  calls_come_back();
  random_grammars_come_back();
  every_kind_of_node_comes_back();
  what_was_built_stays();
  whatever_is_cut_off_or_damaged_is_refused();
  whatever_is_forged_is_a_grammar_or_refused();
  forgeries_have_a_reason();
  budgets_hold();
  automata_are_shared();
  threads_may_read_at_once();
  return check::report();
}
