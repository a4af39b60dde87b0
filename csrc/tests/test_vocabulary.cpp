// The vocabulary: its trie, its tokenisation with the fallback, and the masks of scalar automata.
#include <atomic>
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "grammars.h"
#include "toolprm/vocabulary.h"

using namespace toolprm;

namespace {

// The strings that a walk over the trie finds, with their ids.
std::map<std::string, std::set<TokenId>> spelled(const TokenTrie &trie) {
  std::map<std::string, std::set<TokenId>> found;
  std::string path;
  for (std::uint32_t node = 1; node < trie.size(); ++node) {
    path.resize(trie[node].depth - 1u);
    path += static_cast<char>(trie[node].byte);
    found[path].insert(trie.tokens(node).begin(), trie.tokens(node).end());
    if (found[path].empty())
      found.erase(path);
  }
  return found;
}

void trie_holds_every_token() {
  std::mt19937 random(seed());
  std::vector<std::string> tokens{"", "a", "ab", "abc", "b", "", "ab", "\xff", std::string("\0x", 2)};
  for (int i = 0; i < 300; ++i)
    tokens.push_back(random_text(random, "abc\xc3", 0, 6));
  const Vocabulary vocabulary(tokens, {0});
  std::map<std::string, std::set<TokenId>> expected;
  for (std::size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty())
      expected[tokens[id]].insert(static_cast<TokenId>(id));
  const TokenTrie &trie = vocabulary.trie();
  CHECK(spelled(trie) == expected);
  // skip leads behind the subtree: to the next node that is not deeper.
  for (std::uint32_t node = 0; node < trie.size(); ++node) {
    std::uint32_t next = node + 1;
    while (next < trie.size() && trie[next].depth > trie[node].depth)
      ++next;
    CHECK_EQ(trie[node].skip, next);
  }
  CHECK_EQ(vocabulary.size(), tokens.size());
  CHECK_EQ(vocabulary.words(), (tokens.size() + 31) / 32);
}

void stop_tokens_write_nothing() {
  const Vocabulary vocabulary({"a", "<end>", "b"}, {1});
  CHECK(vocabulary.is_stop(1) && !vocabulary.is_stop(0));
  CHECK_EQ(vocabulary.token(1), std::string());
  CHECK(!spelled(vocabulary.trie()).contains("<end>"));
  CHECK_EQ(vocabulary.longest(), 5u);
  CHECK(vocabulary.contains(2) && !vocabulary.contains(3) && !vocabulary.contains(-1));
  CHECK_THROWS(Vocabulary({"a"}, {1}), std::invalid_argument);
  CHECK_THROWS(Vocabulary({"a"}, {-1}), std::invalid_argument);
  CHECK_THROWS(Vocabulary({std::string(8193, 'a')}, {0}), std::invalid_argument);
}

void empty_vocabulary() {
  const Vocabulary vocabulary({}, {});
  CHECK_EQ(vocabulary.words(), 0u);
  CHECK_EQ(vocabulary.trie().size(), 1u);
  CHECK(vocabulary.tokenize("").empty());
  CHECK_THROWS(vocabulary.tokenize("a"), std::invalid_argument);
}

void tokenize_takes_the_longest_match() {
  const Vocabulary vocabulary({"<end>", "a", "b", "ab", "abb", "ba", "ab"}, {0});
  using Ids = std::vector<TokenId>;
  CHECK_EQ(vocabulary.tokenize("abba"), (Ids{4, 1}));
  CHECK_EQ(vocabulary.tokenize("aba"), (Ids{3, 1})); // of equal tokens the first
  CHECK_EQ(vocabulary.tokenize(""), Ids{});
  CHECK_THROWS(vocabulary.tokenize("abc"), std::invalid_argument);
}

void tokenize_prefers_the_tokenizer() {
  using Ids = std::vector<TokenId>;
  int asked = 0;
  Ids answer;
  const Vocabulary vocabulary({"<end>", "a", "b", "ab"}, {0}, [&](std::string_view) {
    ++asked;
    return answer;
  });
  answer = {1, 2};
  CHECK_EQ(vocabulary.tokenize("ab"), (Ids{1, 2}));
  answer = {3};
  CHECK_EQ(vocabulary.tokenize("ab"), (Ids{1, 2})); // asked once a text
  CHECK_EQ(asked, 1);
  // What does not spell the bytes is not believed.
  for (const Ids &wrong : {Ids{}, Ids{1}, Ids{2, 1}, Ids{3, 3}, Ids{3, 0}, Ids{99}, Ids{-1}}) {
    answer = wrong;
    const std::string text = "ab" + std::string(static_cast<std::size_t>(asked), 'a');
    Ids expected{3};
    expected.resize(static_cast<std::size_t>(asked) + 1, 1);
    CHECK_EQ(vocabulary.tokenize(text), expected);
  }
}

void tokenizer_errors_pass() {
  bool broken = true;
  const Vocabulary vocabulary({"<end>", "a"}, {0}, [&](std::string_view) -> std::vector<TokenId> {
    if (broken)
      throw std::runtime_error("no tokenizer");
    return {1};
  });
  CHECK_THROWS(vocabulary.tokenize("a"), std::runtime_error);
  broken = false;
  CHECK_EQ(vocabulary.tokenize("a"), std::vector<TokenId>{1});
}

void scalar_masks_agree_with_reading_each_token() {
  std::mt19937 random(seed());
  std::vector<std::string> tokens{""};
  for (int i = 0; i < 200; ++i)
    tokens.push_back(random_text(random, "ab\"1", 1, 5));
  const Vocabulary vocabulary(tokens, {0});
  for (const auto &dfa : {strings_dfa({"\"a\"", "\"ab\"", "\"abba\""}), quoted_dfa("ab"), digits_dfa("1")})
    for (std::size_t s = 0; s < dfa->states(); ++s) {
      const auto mask = vocabulary.scalar_mask(dfa, static_cast<std::int32_t>(s));
      std::map<std::int32_t, std::map<std::string, std::set<TokenId>>> exits, found;
      std::uint32_t count = 0;
      for (std::size_t id = 1; id < tokens.size(); ++id) {
        auto state = static_cast<std::int32_t>(s);
        for (std::size_t i = 0; state >= 0 && i < tokens[id].size(); ++i) {
          state = dfa->next(state, static_cast<std::uint8_t>(tokens[id][i]));
          if (state >= 0 && dfa->accepting(state) && i + 1 < tokens[id].size())
            exits[state][tokens[id].substr(i + 1)].insert(static_cast<TokenId>(id));
        }
        count += state >= 0 ? 1 : 0;
        CHECK_EQ(bit(mask->inside->data(), id), state >= 0);
      }
      for (const auto &exit : mask->exits)
        found[exit.state] = spelled(exit.rest);
      CHECK(found == exits);
      CHECK_EQ(mask->count, count);
      CHECK(vocabulary.scalar_mask(dfa, static_cast<std::int32_t>(s)) == mask);
    }
}

void repeat_masks_agree_with_reading_each_token() {
  std::mt19937 random(seed());
  std::vector<std::string> tokens{""};
  for (int i = 0; i < 300; ++i)
    tokens.push_back(random_text(random, "ab\\\"1", 1, 6));
  const Vocabulary vocabulary(tokens, {0});
  const auto unit = strings_dfa({"a", "b", "\\a", "\\b"}); // state 0, and one behind the backslash
  for (std::int32_t s : {0, unit->next(0, '\\')})
    for (std::uint32_t least = 0; least < 4; ++least)
      for (std::uint32_t most : {1u, 2u, 3u, 5u, kUnbounded}) {
        const auto mask = vocabulary.repeat_mask(unit, '"', s, least, most);
        std::map<std::string, std::set<TokenId>> exits, found;
        std::uint32_t count = 0;
        for (std::size_t id = 1; id < tokens.size(); ++id) {
          std::int32_t state = s;
          std::uint32_t units = 0;
          std::size_t i = 0;
          bool on = true, ended = false;
          for (; on && !ended && i < tokens[id].size(); ++i) {
            const auto byte = static_cast<std::uint8_t>(tokens[id][i]);
            if (state == 0 && byte == '"') {
              on = ended = units >= least;
              continue;
            }
            on = units < most && (state = unit->next(state, byte)) >= 0;
            if (on && unit->accepting(state)) {
              ++units;
              state = 0;
            }
          }
          if (on && ended && i < tokens[id].size())
            exits[tokens[id].substr(i)].insert(static_cast<TokenId>(id));
          const bool whole = on && i == tokens[id].size();
          CHECK_EQ(bit(mask->inside->data(), id), whole);
          count += whole ? 1 : 0;
        }
        for (const auto &exit : mask->exits)
          found = spelled(exit.rest);
        CHECK(found == exits);
        CHECK_EQ(mask->count, count);
        CHECK(vocabulary.repeat_mask(unit, '"', s, least, most) == mask);
      }
}

// There is room for a bounded number of masks: later automata get theirs all the same, earlier ones theirs again.
void scalar_masks_make_room() {
  const Vocabulary vocabulary({"", "a", "b"}, {0});
  const auto first = strings_dfa({"a"});
  std::weak_ptr<const Dfa> gone;
  for (int i = 0; i < 3000; ++i) {
    const auto dfa = strings_dfa({"b"});
    if (i == 0)
      gone = dfa;
    const auto mask = vocabulary.scalar_mask(dfa, 0);
    if (!mask || !bit(mask->inside->data(), 2) || bit(mask->inside->data(), 1))
      CHECK(false);
  }
  CHECK(gone.expired());
  const auto mask = vocabulary.scalar_mask(first, 0);
  CHECK(mask && bit(mask->inside->data(), 1));
}

} // namespace

int main() {
  trie_holds_every_token();
  stop_tokens_write_nothing();
  empty_vocabulary();
  tokenize_takes_the_longest_match();
  tokenize_prefers_the_tokenizer();
  tokenizer_errors_pass();
  scalar_masks_agree_with_reading_each_token();
  repeat_masks_agree_with_reading_each_token();
  scalar_masks_make_room();
  return check::report();
}
