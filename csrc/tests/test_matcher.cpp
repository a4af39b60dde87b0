// Matchers against slow readers: which texts are legal, masks in every state of random walks, steps, forced and closing
// texts, forks and rollback.
#include <algorithm>
#include <map>

#include "check.h"
#include "grammars.h"

using namespace toolprm;

namespace {

std::string describe(const Shape &s) { // for messages
  std::string out = std::to_string(s.kind) + "(" + s.text;
  for (const auto &t : s.strings)
    out += " '" + t + "'";
  for (std::size_t i = 0; i < s.parts.size(); ++i)
    out += (i < s.required.size() && s.required[i] ? " !" : " ") + describe(s.parts[i]);
  for (const auto &m : s.more)
    out += " *" + describe(m);
  if (s.kind == Shape::kRule)
    out += "#" + std::to_string(s.rule);
  return out + " " + std::to_string(s.min) + ".." + (s.max == kUnbounded ? "" : std::to_string(s.max)) + ")";
}

std::string describe(const Description &d) {
  std::string out = describe(d.root);
  for (const auto &rule : d.rules)
    out += "; " + describe(rule);
  return out;
}

const std::string kAlphabet = "ab12{}[],\"< \n";

// The shortest text that completes a legal one, up to a length; or nothing.
std::optional<std::size_t> shortest_end(const Description &d, const std::string &text, std::size_t most) {
  std::vector<std::string> open{text};
  for (std::size_t n = 0; n <= most; ++n) {
    std::vector<std::string> next;
    for (const std::string &t : open) {
      if (Reader(d, t).complete)
        return n;
      for (char c : kAlphabet)
        if (std::string longer = t + c; Reader(d, longer).viable)
          next.push_back(std::move(longer));
    }
    if (next.size() > 3000)
      return std::nullopt;
    open = std::move(next);
  }
  return std::nullopt;
}

void check_state(const Description &d, const Matcher &m, const std::string &text, std::mt19937 &random) {
  const Vocabulary &vocabulary = m.vocabulary();
  const int before = check::failures;
  const bool complete = Reader(d, text).complete;
  CHECK_EQ(m.is_complete(), complete);
  CHECK_EQ(m.text(), text);
  std::vector<std::int32_t> row(vocabulary.words() + 1, 0x55555555);
  m.fill_mask(row);
  CHECK_EQ(row.back(), 0);
  const auto mask = m.mask();
  std::uint32_t count = 0;
  for (std::size_t id = 0; id < vocabulary.words() * 32; ++id) {
    const auto token = static_cast<TokenId>(id);
    bool legal = false;
    if (vocabulary.is_stop(token))
      legal = complete;
    else if (vocabulary.contains(token))
      legal = Reader(d, text + vocabulary.token(token)).viable;
    count += legal ? 1u : 0u;
    if (bit(row.data(), id) != legal)
      check::record(false, __FILE__, __LINE__,
                    "token '" + (vocabulary.contains(token) ? vocabulary.token(token) : "") + "'");
    CHECK_EQ(mask->legal(token), legal);
    if (below(random, 4) == 0) {
      Matcher fork(m);
      CHECK_EQ(fork.accept(token), legal);
      CHECK_EQ(fork.text() != text || fork.is_stopped(), legal);
    }
  }
  CHECK_EQ(mask->count, count);

  // The only bytes that can follow.
  std::string forced;
  bool over = false;
  while (forced.size() < 4096) {
    std::string next;
    for (char c : kAlphabet)
      if (Reader(d, text + forced + c).viable)
        next += c;
    over = next.empty();
    if (next.size() != 1 || Reader(d, text + forced).complete)
      break;
    forced += next;
  }
  CHECK_EQ(m.forced_bytes(), forced);
  CHECK_EQ(m.forced_bytes(2), forced.substr(0, 2));
  if (forced.empty())
    CHECK_EQ(m.is_over(), over);
  std::string run;
  for (TokenId token : m.forced())
    run += vocabulary.token(token);
  CHECK(forced.starts_with(run));

  const std::string closing = m.closing();
  CHECK_EQ(closing.size(), m.closing_bytes());
  CHECK(Reader(d, text + closing).complete);
  if (closing.size() <= 6)
    if (const auto least = shortest_end(d, text, closing.size()))
      CHECK_EQ(closing.size(), *least);
  if (check::failures > before)
    std::fprintf(stderr, "in '%s' of %s\n", text.c_str(), describe(d).c_str());
}

void random_walks_agree_with_the_reader() {
  std::mt19937 random(seed());
  int states = 0;
  for (int g = 0; g < 400 && check::failures == 0; ++g) {
    const Description d = random_description(random);
    const auto vocabulary = random_vocabulary(random, 70);
    Matcher m(build(d), vocabulary);
    std::string text;
    for (int step = 0; step < 8 && text.size() < 24; ++step, ++states) {
      check_state(d, m, text, random);
      if (check::failures > 0) {
        std::fprintf(stderr, "after %d grammars\n", g);
        return;
      }
      std::vector<TokenId> legal;
      for (std::size_t id = 1; id < vocabulary->size(); ++id)
        if (m.mask()->legal(static_cast<TokenId>(id)))
          legal.push_back(static_cast<TokenId>(id));
      if (legal.empty())
        break;
      const TokenId token = legal[below(random, legal.size())];
      CHECK(m.accept(token));
      text += vocabulary->token(token);
    }
  }
  CHECK(states > 1000);
}

void random_texts_agree_with_the_reader() {
  std::mt19937 random(seed() + 1);
  for (int g = 0; g < 300; ++g) {
    const Description d = random_description(random);
    const Matcher start(build(d), random_vocabulary(random, 30));
    for (int i = 0; i < 30; ++i) {
      // A legal text, changed in one place.
      Matcher m(start);
      std::string text;
      while (text.size() < 20 && !m.is_over()) {
        std::string next;
        for (char c : kAlphabet)
          if (Matcher fork(m); fork.accept_bytes({&c, 1}))
            next += c;
        if (next.empty() || (m.is_complete() && below(random, 3) == 0))
          break;
        const char c = next[below(random, next.size())];
        CHECK(m.accept_bytes({&c, 1}));
        text += c;
      }
      if (!text.empty() && below(random, 2))
        text[below(random, text.size())] = kAlphabet[below(random, kAlphabet.size())];
      const Reader read(d, text);
      Matcher whole(start);
      CHECK_EQ(whole.accept_bytes(text), read.viable);
      if (read.viable)
        CHECK_EQ(whole.is_complete(), read.complete);
      else
        CHECK_EQ(whole.token_count(), 0u);
    }
  }
}

// ---------------------------------------------------------------------------------------------- large objects

void objects_with_many_properties() {
  std::mt19937 random(seed() + 2);
  for (const std::size_t properties : {63u, 64u, 65u, 130u, 200u}) {
    GrammarBuilder b;
    const NodeId value = b.literal(":1");
    GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {}, nullptr};
    std::vector<std::string> keys;
    std::set<std::size_t> required;
    for (std::size_t i = 0; i < properties; ++i) {
      keys.push_back('"' + std::to_string(i) + '"');
      if (below(random, 10) == 0)
        required.insert(i);
      object.properties.push_back({{keys.back()}, value, required.contains(i)});
    }
    std::vector<std::string> tokens{"<stop>", "{", "}", ",", ":1"};
    for (const auto &key : keys)
      tokens.push_back(key);
    Matcher m(b.build(b.sequence({b.object(object), b.stop()}), false),
              std::make_shared<const Vocabulary>(tokens, std::vector<TokenId>{0}));
    CHECK(m.accept(1));
    std::set<std::size_t> seen;
    std::vector<std::size_t> order(properties);
    for (std::size_t i = 0; i < properties; ++i)
      order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t i : order) {
      for (std::size_t k = 0; k < properties; ++k)
        CHECK_EQ(m.mask()->legal(static_cast<TokenId>(5 + k)), !seen.contains(k));
      // The shortest end: a `"k":1,` for each that is required, without the last comma.
      std::size_t shortest = 1;
      for (std::size_t k : required)
        shortest += seen.contains(k) ? 0 : keys[k].size() + 3;
      if (std::any_of(required.begin(), required.end(), [&](std::size_t k) { return !seen.contains(k); }))
        CHECK_EQ(m.closing_bytes(), shortest - 1);
      CHECK(m.accept(static_cast<TokenId>(5 + i)));
      CHECK(m.accept(4));
      seen.insert(i);
      const bool done = std::includes(seen.begin(), seen.end(), required.begin(), required.end());
      CHECK_EQ(m.mask()->legal(2), done);
      if (seen.size() < properties)
        CHECK(m.accept(3));
    }
    CHECK_EQ(m.forced_bytes(), std::string("}"));
  }
}

// The same properties in another order are the same state.
void order_does_not_matter_to_the_state() {
  GrammarBuilder b;
  const NodeId value = b.literal(":1");
  GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {}, nullptr};
  for (int i = 0; i < 100; ++i)
    object.properties.push_back({{'"' + std::to_string(i) + '"'}, value, false});
  std::mt19937 random(seed());
  Matcher m(b.build(b.sequence({b.object(object), b.stop()}), false), random_vocabulary(random, 40));
  Matcher a(m), c(m);
  CHECK(a.accept_bytes("{\"3\":1,\"70\":1") && c.accept_bytes("{\"70\":1,\"3\":1"));
  CHECK(a.state() == c.state() && a.mask() == c.mask());
  CHECK(c.accept_bytes(",\"4\":1"));
  CHECK(a.state() != c.state());
}

// ---------------------------------------------------------------------------------------------- steps

struct Written {
  std::string text;
  std::vector<Step> steps;

  void end(StepKind kind, const std::string &path, std::uint32_t value = 0) {
    const std::uint32_t from = steps.empty() ? 0 : steps.back().end;
    steps.push_back({kind, from, static_cast<std::uint32_t>(text.size()), path, text.substr(from), value});
  }
};

Written random_calls(std::mt19937 &random) {
  Written w;
  w.text = "[";
  const std::size_t calls = below(random, 4);
  for (std::size_t c = 0; c < calls; ++c) {
    const std::string at = "/" + std::to_string(c);
    const bool g = below(random, 2) == 0;
    w.text += std::string(c > 0 ? ", " : "") + "{\"name\": " + (g ? "\"g\"" : "\"f\"");
    w.end(StepKind::kFuncName, at + "/name");
    w.text += ", \"arguments\": {";
    std::vector<std::string> keys{"n", "s"};
    if (g)
      keys.insert(keys.end(), {"a", "nn", "ba"});
    std::shuffle(keys.begin(), keys.end(), random);
    keys.resize(below(random, keys.size() + 1));
    for (std::size_t k = 0; k < keys.size(); ++k) {
      const auto begin = static_cast<std::uint32_t>(w.text.size());
      const std::uint32_t from = w.steps.back().end;
      w.text += std::string(k > 0 ? ", " : "") + '"' + keys[k] + "\": ";
      const auto value = static_cast<std::uint32_t>(w.text.size()) - from;
      CHECK(begin >= from);
      if (keys[k] == "s")
        w.text += '"' + random_text(random, "ab, }]", 0, 5) + '"';
      else if (keys[k] != "n" && below(random, 2))
        w.text += "null";
      else
        w.text += random_text(random, "12", 1, 4);
      w.end(StepKind::kArgValue, at + "/arguments/" + keys[k], value);
    }
    w.text += "}";
    w.end(StepKind::kParamFinish, at + "/arguments");
    w.text += "}";
    w.end(StepKind::kFuncFinish, at);
  }
  w.text += "]";
  w.end(StepKind::kTotalFinish, "");
  return w;
}

bool same(const Step &a, const Step &b) {
  return a.kind == b.kind && a.start == b.start && a.end == b.end && a.path == b.path && a.text == b.text &&
         a.value == b.value;
}

bool same(const std::vector<Step> &a, const std::vector<Step> &b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Step &x, const Step &y) { return same(x, y); });
}

void steps_come_with_their_spans() {
  std::mt19937 random(seed() + 3);
  const auto grammar = calls_grammar();
  std::vector<std::string> tokens{"<stop>"};
  for (char c : std::string("{}[]\":, abnsfglrumet12"))
    tokens.emplace_back(1, c);
  for (const char *t : {"\"}", "\"}}", "}}", "}]", "\"},", "}},", "{}", "[]", "[{", "\": ", "1}}]", "2, \"", "\", \"",
                        "null}", "}}, {"})
    tokens.emplace_back(t);
  const auto vocabulary = std::make_shared<const Vocabulary>(tokens, std::vector<TokenId>{0});
  for (int i = 0; i < 300; ++i) {
    const Written w = random_calls(random);
    // In tokens that cross the borders of the steps.
    Matcher m(grammar, vocabulary);
    std::vector<Step> steps;
    std::vector<std::pair<Matcher, std::size_t>> forks;
    std::size_t at = 0;
    while (at < w.text.size()) {
      std::vector<TokenId> fits;
      for (std::size_t id = 1; id < tokens.size(); ++id)
        if (w.text.compare(at, tokens[id].size(), tokens[id]) == 0)
          fits.push_back(static_cast<TokenId>(id));
      const TokenId token = fits.at(below(random, fits.size()));
      const std::size_t known = steps.size();
      CHECK(m.accept(token, &steps));
      at += vocabulary->token(token).size();
      CHECK(same(m.steps(), steps));
      CHECK_EQ(m.boundary(), steps.empty() ? 0u : steps.back().end);
      // A step is known as soon as its last byte decides it: numbers end with the byte after them.
      for (const Step &s : w.steps)
        if (s.end < at || (s.end == at && s.kind != StepKind::kArgValue && !steps.empty()))
          CHECK(std::any_of(steps.begin(), steps.end(), [&](const Step &known_step) { return same(known_step, s); }));
      CHECK(steps.size() >= known);
      if (below(random, 5) == 0) {
        forks.emplace_back(m, steps.size());
        Matcher astray(m); // what a fork reads is nothing to the others
        static_cast<void>(astray.accept(static_cast<TokenId>(1 + below(random, tokens.size() - 1))));
      }
    }
    CHECK(m.accept(0, &steps));
    CHECK(m.is_stopped() && m.is_complete() && m.is_over());
    CHECK(!m.accept(0) && !m.accept(1) && !m.finish() && !m.accept_bytes("1"));
    CHECK_EQ(m.closing(), std::string());
    CHECK_EQ(m.closing_bytes(), 0u);
    CHECK_EQ(m.mask()->count, 0u);
    CHECK(same(steps, w.steps));
    CHECK(same(m.steps(), w.steps));
    CHECK_EQ(m.text(), w.text);
    // Forks go on from where they were.
    for (auto &[fork, known] : forks) {
      std::vector<Step> rest;
      CHECK(fork.accept_bytes(std::string_view(w.text).substr(fork.text_bytes()), &rest));
      CHECK(fork.finish(&rest));
      CHECK(same(rest, {w.steps.begin() + static_cast<std::ptrdiff_t>(known), w.steps.end()}));
    }
  }
}

void a_pythonic_step_ends_before_the_last_byte() {
  GrammarBuilder b;
  const NodeId value = b.scalar(digits_dfa("12"));
  GrammarBuilder::Object arguments{
      b.literal(""), b.literal(", "), b.literal(")"), {{{"x="}, value, false}, {{"y="}, value, false}}, nullptr};
  arguments.arguments = true;
  const NodeId call = b.sequence({b.step(StepKind::kFuncName, 1), b.object(arguments), b.step(StepKind::kParamFinish),
                                  b.step(StepKind::kFuncFinish)});
  const auto grammar = b.build(b.sequence({b.names({{"f.g(", call}}), b.stop(), b.step(StepKind::kTotalFinish)}), true);
  std::mt19937 random(seed());
  Matcher m(grammar, random_vocabulary(random, 40));
  std::vector<Step> steps;
  for (char c : std::string("f.g(y=12, x=1)")) // the name's end lies before the byte that shows it
    CHECK(m.accept_bytes({&c, 1}, &steps));
  CHECK(m.finish(&steps));
  const std::vector<Step> expected{{StepKind::kFuncName, 0, 3, "/0/name", "f.g", 0},
                                   {StepKind::kArgValue, 3, 8, "/0/arguments/y", "(y=12", 3},
                                   {StepKind::kArgValue, 8, 13, "/0/arguments/x", ", x=1", 4},
                                   {StepKind::kParamFinish, 13, 14, "/0/arguments", ")", 0},
                                   {StepKind::kFuncFinish, 14, 14, "/0", "", 0},
                                   {StepKind::kTotalFinish, 14, 14, "", "", 0}};
  CHECK(same(steps, expected));
}

// A step cannot begin before the one in front of it has ended, nor before the text.
void steps_that_reach_too_far_back_are_cut() {
  GrammarBuilder b;
  const auto grammar = b.build(b.sequence({b.literal("ab"), b.step(StepKind::kFuncName, 9), b.literal("c"),
                                           b.step(StepKind::kArgValue), b.step(StepKind::kParamFinish, 2), b.stop()}),
                               false);
  std::mt19937 random(seed());
  Matcher m(grammar, random_vocabulary(random, 40));
  std::vector<Step> steps;
  CHECK(m.accept_bytes("abc", &steps));
  CHECK_EQ(steps.size(), 3u);
  std::uint32_t end = 0;
  for (const Step &s : steps) {
    CHECK_EQ(s.start, end);
    CHECK(s.end >= s.start);
    end = s.end;
  }
}

// ---------------------------------------------------------------------------------------------- forced runs

void units_may_come_back_to_their_start() {
  DfaTable unit; // a* then b or, over c, the start again
  const std::int32_t start = unit.state(false), end = unit.state(true), far = unit.state(false);
  unit.edge(start, 'a') = start;
  unit.edge(start, 'b') = end;
  unit.edge(start, '1') = far;
  unit.edge(far, '2') = start;
  GrammarBuilder b;
  std::mt19937 random(seed() + 7);
  const Matcher root(b.build(b.sequence({b.repeat(unit.build(), 1, 2), b.literal("]"), b.stop()}), false),
                     random_vocabulary(random, 60));
  for (const char *text : {"", "a", "12", "b", "ab", "12b", "bb", "ba", "aba", "b12"}) {
    Matcher m(root);
    CHECK(m.accept_bytes(text));
    const std::string written = text;
    const bool open = !written.empty() && written.back() != 'b';
    CHECK_EQ(Matcher(m).accept_bytes("]"), !written.empty() && !open);
    CHECK_EQ(m.closing_bytes(), written.empty() || open ? 2u : 1u);
    CHECK_EQ(m.closing().size(), m.closing_bytes());
    for (std::size_t id = 1; id < m.vocabulary().size(); ++id) {
      const auto token = static_cast<TokenId>(id);
      CHECK_EQ(m.mask()->legal(token), Matcher(m).accept(token));
    }
  }
  for (const char *text : {"]", "a]", "bbb", "b1b"})
    CHECK(!Matcher(root).accept_bytes(text));
}

void keys_end_where_they_are_first_accepted() {
  GrammarBuilder b;
  GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {}, digits_dfa("ab")};
  object.other_value = b.literal("1");
  std::mt19937 random(seed() + 8);
  Matcher m(b.build(b.sequence({b.object(object), b.stop()}), false), random_vocabulary(random, 60));
  CHECK(m.accept_bytes("{"));
  CHECK(!Matcher(m).accept_bytes("ab") && Matcher(m).accept_bytes("a1,b1}"));
  for (std::size_t id = 1; id < m.vocabulary().size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    CHECK_EQ(m.mask()->legal(token), Matcher(m).accept(token));
  }
}

void forced_runs_leave_out_what_may_merge() {
  GrammarBuilder b;
  // `{"a": ` and then `"…"` or a number.
  const auto grammar =
      b.build(b.sequence({b.literal("{\"a\": "), b.choice({b.scalar(quoted_dfa("ab")), b.scalar(digits_dfa("12"))}),
                          b.literal("}]"), b.stop()}),
              false);
  const auto vocabulary =
      std::make_shared<const Vocabulary>(std::vector<std::string>{"<stop>", "{", "\"", "a", "b", ":", " ", "1", "2",
                                                                  "}", "]", "{\"", "\":", ": ", " \"", "}]"},
                                         std::vector<TokenId>{0});
  using Ids = std::vector<TokenId>;
  Matcher m(grammar, vocabulary);
  CHECK_EQ(m.forced_bytes(), std::string("{\"a\": "));
  CHECK_EQ(m.forced(), (Ids{11, 3, 12})); // not the space: it may become ` "`
  for (TokenId token : m.forced())
    CHECK(m.accept(token));
  CHECK(m.forced_bytes() == " " && m.forced().empty());
  CHECK(m.accept(14)); // ` "`
  CHECK(m.forced().empty());
  CHECK(m.accept(2)); // the string ends
  CHECK_EQ(m.forced(), Ids{15});
  CHECK(m.accept(15));
  CHECK(m.forced().empty() && m.is_over() && !m.is_stopped());
}

// ---------------------------------------------------------------------------------------------- forks, pools

void rollback_takes_tokens_back() {
  std::mt19937 random(seed() + 4);
  const auto vocabulary = random_vocabulary(random, 60);
  const auto grammar = calls_grammar();
  Matcher m(grammar, vocabulary);
  std::vector<Matcher> history{m};
  const std::string text = "[{\"name\": \"f\", \"arguments\": {\"n\": 12, \"s\": \"a b\"}}]";
  for (std::size_t i = 0; i < text.size(); ++i) {
    CHECK(m.accept_bytes(std::string_view(text).substr(i, 1)));
    history.push_back(m);
  }
  CHECK(m.finish());
  CHECK_EQ(m.token_count(), text.size() + 1);
  CHECK_THROWS(m.rollback(text.size() + 2), std::out_of_range);
  CHECK_EQ(m.token_count(), text.size() + 1);
  while (m.token_count() > 0) {
    const std::size_t back = 1 + below(random, std::min<std::size_t>(m.token_count(), 5));
    m.rollback(back);
    const Matcher &then = history[m.token_count()];
    CHECK(m.state() == then.state() && m.text() == then.text() && m.boundary() == then.boundary());
    CHECK(same(m.steps(), then.steps()));
    CHECK(!m.is_stopped());
  }
  m.rollback(0);
  CHECK(m.accept_bytes(text) && m.is_complete());
}

void long_texts_are_released_without_recursion() {
  GrammarBuilder b;
  std::mt19937 random(seed());
  Matcher m(b.build(b.sequence({b.scalar(digits_dfa("12")), b.stop()}), false), random_vocabulary(random, 30));
  {
    Matcher fork(m);
    for (int i = 0; i < 300'000; ++i)
      if (!fork.accept_bytes("1"))
        CHECK(false);
    Matcher half(fork);
    half.rollback(150'000);
    fork = m;
    CHECK_EQ(half.text_bytes(), 150'000u);
  }
  CHECK(m.accept_bytes("1"));
}

// A grammar serves vocabularies of any size, each with its own masks.
void vocabularies_do_not_share_masks() {
  GrammarBuilder b;
  const auto grammar = b.build(b.sequence({b.choice({b.literal("a"), b.literal("b")}), b.stop()}), false);
  const auto make = [](std::size_t size, TokenId a) {
    std::vector<std::string> tokens(size, "x");
    tokens[0] = "<stop>";
    tokens[static_cast<std::size_t>(a)] = "a";
    return std::make_shared<const Vocabulary>(tokens, std::vector<TokenId>{0});
  };
  const Matcher small(grammar, make(8, 3)), large(grammar, make(5000, 4000));
  CHECK_EQ(large.mask()->few, std::vector<TokenId>{4000});
  CHECK_EQ(small.mask()->few, std::vector<TokenId>{3});
  CHECK_EQ(Matcher(grammar, make(8, 5)).mask()->few, std::vector<TokenId>{5});
  CHECK_THROWS(Matcher(nullptr, make(8, 3)), std::invalid_argument);
  CHECK_THROWS(Matcher(grammar, nullptr), std::invalid_argument);
}

// A full pool is left to its last matcher; new matchers get another.
void pools_are_begun_anew() {
  std::mt19937 random(seed());
  const auto vocabulary = random_vocabulary(random, 60);
  GrammarBuilder b;
  const NodeId digits = b.scalar(digits_dfa("12"));
  const auto grammar =
      b.build(b.sequence({b.array({b.literal("["), b.literal(","), b.literal("]"), {}, digits, 900, 1000}), b.stop()}),
              false, 20'000);
  Matcher first(grammar, vocabulary);
  const State *begin = first.state();
  CHECK(Matcher(grammar, vocabulary).state() == begin);
  CHECK(first.accept_bytes("[1"));
  for (int i = 0; i < 600; ++i)
    CHECK(first.accept_bytes(",1"));
  const Matcher second(grammar, vocabulary);
  CHECK(second.state() != begin);
  CHECK(Matcher(grammar, vocabulary).state() == second.state());
  CHECK_EQ(second.forced_bytes(), std::string("["));
  Matcher fork(first); // stays in its pool
  CHECK(fork.accept_bytes(",2") && first.accept_bytes(",2"));
  CHECK(fork.state() == first.state());
  CHECK_EQ(fork.closing_bytes(), 2u * (900 - 602) + 1);
}

} // namespace

int main() {
  random_walks_agree_with_the_reader();
  random_texts_agree_with_the_reader();
  objects_with_many_properties();
  order_does_not_matter_to_the_state();
  steps_come_with_their_spans();
  a_pythonic_step_ends_before_the_last_byte();
  steps_that_reach_too_far_back_are_cut();
  units_may_come_back_to_their_start();
  keys_end_where_they_are_first_accepted();
  forced_runs_leave_out_what_may_merge();
  rollback_takes_tokens_back();
  long_texts_are_released_without_recursion();
  vocabularies_do_not_share_masks();
  pools_are_begun_anew();
  return check::report();
}
