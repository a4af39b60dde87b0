// The C interface: it does what the C++ one does, and answers whatever it is given with a status.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <thread>

#include "check.h"
#include "grammars.h"
#include "toolprm/draw.h"
#include "toolprm/search.h"
#include "toolprm/toolprm.h"

using namespace toolprm;

namespace {

// ---------------------------------------------------------------------------------------------- handles that free

template <class Handle, void (*free_handle)(Handle *)> class Own {
public:
  Own() = default;
  Own(const Own &) = delete;
  Own &operator=(const Own &) = delete;
  ~Own() { free_handle(handle_); }
  Handle *get() const { return handle_; }
  Handle **out() {
    free_handle(std::exchange(handle_, nullptr));
    return &handle_;
  }

private:
  Handle *handle_ = nullptr;
};

using CVocabulary = Own<toolprm_vocabulary, toolprm_vocabulary_free>;
using CGrammar = Own<toolprm_grammar, toolprm_grammar_free>;
using CMatcher = Own<toolprm_matcher, toolprm_matcher_free>;
using CFormat = Own<toolprm_reward_format, toolprm_reward_format_free>;
using CSearch = Own<toolprm_search, toolprm_search_free>;
using CResult = Own<toolprm_result, toolprm_result_free>;

#define CHECK_OK(call) CHECK_EQ(call, TOOLPRM_OK)
// Refused with a status, and with words that hold a part.
#define CHECK_REFUSED(call, expected, part)                                                                            \
  do {                                                                                                                 \
    CHECK_EQ(call, expected);                                                                                          \
    CHECK(std::string(toolprm_last_error()).find(part) != std::string::npos);                                          \
  } while (false)

std::string text(toolprm_bytes bytes) { return std::string(bytes.data, bytes.size); }

void make_vocabulary(CVocabulary &out, const toolprm_tokenizer *tokenizer = nullptr) {
  const Vocabulary &from = *call_vocabulary();
  std::vector<toolprm_bytes> tokens;
  for (std::size_t i = 0; i < from.size(); ++i) {
    const std::string &token = from.token(static_cast<TokenId>(i));
    tokens.push_back({token.data(), token.size()});
  }
  CHECK_OK(toolprm_vocabulary_create(tokens.data(), tokens.size(), from.stop_ids().data(), from.stop_ids().size(),
                                     tokenizer, out.out()));
}

void make_grammar(CGrammar &out) {
  const auto bytes = calls_grammar()->serialize();
  CHECK_OK(toolprm_grammar_deserialize(bytes.data(), bytes.size(), 0, out.out()));
}

// A matcher of calls_grammar(), whose grammar and vocabulary are freed already.
void make_matcher(CMatcher &out) {
  CVocabulary vocabulary;
  CGrammar grammar;
  make_vocabulary(vocabulary);
  make_grammar(grammar);
  CHECK_OK(toolprm_matcher_create(grammar.get(), vocabulary.get(), out.out()));
}

// ---------------------------------------------------------------------------------------------- matchers

void versions_are_told() {
  CHECK_EQ(toolprm_abi_version(), static_cast<std::uint32_t>(TOOLPRM_ABI_VERSION));
  CHECK_EQ(toolprm_abi_revision(), static_cast<std::uint32_t>(TOOLPRM_ABI_REVISION));
  CHECK(std::strchr(toolprm_version(), '.') != nullptr);
}

void check_step(const toolprm_step &c, const Step &step) {
  CHECK_EQ(c.kind, static_cast<std::int32_t>(step.kind));
  CHECK_EQ(c.start, step.start);
  CHECK_EQ(c.end, step.end);
  CHECK_EQ(c.value, step.value);
  CHECK_EQ(text(c.path), step.path);
  CHECK_EQ(text(c.text), step.text);
}

void matchers_do_the_same() {
  std::mt19937 random(seed());
  Matcher matcher(calls_grammar(), call_vocabulary());
  const std::size_t words = call_vocabulary()->words();
  std::vector<std::int32_t> row(words), same(words + 1);
  for (int round = 0; round < 30; ++round) {
    Matcher m(matcher);
    CMatcher c, forked;
    make_matcher(c);
    for (int i = 0; i < 60 && !m.is_stopped(); ++i) {
      m.fill_mask(row);
      same.back() = -1;
      CHECK_OK(toolprm_matcher_fill_mask(c.get(), same.data(), same.size()));
      CHECK(std::equal(row.begin(), row.end(), same.begin()) && same.back() == 0);
      const TokenId *forced = nullptr;
      std::size_t count = 0;
      CHECK_OK(toolprm_matcher_forced(c.get(), &forced, &count));
      CHECK(std::vector<TokenId>(forced, forced + count) == m.forced());
      std::int32_t complete = -1, stopped = -1;
      CHECK_OK(toolprm_matcher_is_complete(c.get(), &complete));
      CHECK_OK(toolprm_matcher_is_stopped(c.get(), &stopped));
      CHECK(complete == m.is_complete() && stopped == 0);
      const auto token = static_cast<TokenId>(below(random, call_vocabulary()->size() + 2)) - 1;
      std::vector<Step> steps;
      const toolprm_step *c_steps = nullptr;
      if (!m.accept(token, &steps)) {
        CHECK_REFUSED(toolprm_matcher_accept(c.get(), token, &c_steps, &count), TOOLPRM_ILLEGAL_TOKEN, "not legal");
        continue;
      }
      CHECK_OK(toolprm_matcher_fork(c.get(), forked.out()));
      CHECK_OK(toolprm_matcher_accept(c.get(), token, &c_steps, &count));
      CHECK_EQ(count, steps.size());
      for (std::size_t s = 0; s < std::min(count, steps.size()); ++s)
        check_step(c_steps[s], steps[s]);
      CHECK_OK(toolprm_matcher_accept(forked.get(), token, nullptr, nullptr)); // a fork goes the same way
      toolprm_bytes written{}, copy{};
      CHECK_OK(toolprm_matcher_text(c.get(), &written));
      CHECK_OK(toolprm_matcher_text(forked.get(), &copy));
      CHECK_EQ(text(written), m.text());
      CHECK_EQ(text(copy), m.text());
      if (below(random, 4) == 0) {
        const std::size_t back = below(random, m.token_count() + 1);
        m.rollback(back);
        CHECK_OK(toolprm_matcher_rollback(c.get(), back));
      }
      CHECK_REFUSED(toolprm_matcher_rollback(c.get(), m.token_count() + 1), TOOLPRM_INVALID_ARGUMENT, "take back");
    }
  }
}

void masks_are_filled_together() {
  CMatcher start, later;
  make_matcher(start);
  CHECK_OK(toolprm_matcher_fork(start.get(), later.out()));
  const TokenId *forced = nullptr;
  std::size_t count = 0;
  CHECK_OK(toolprm_matcher_forced(later.get(), &forced, &count));
  CHECK_EQ(count, 0u); // "[]" is one token, "[{" another
  Matcher m(calls_grammar(), call_vocabulary());
  TokenId open = 0;
  while (call_vocabulary()->token(open) != "[")
    ++open;
  CHECK(m.accept(open));
  CHECK_OK(toolprm_matcher_accept(later.get(), open, nullptr, nullptr));
  const std::size_t words = call_vocabulary()->words() + 2;
  std::vector<std::int32_t> rows(2 * words, -1), row(words);
  const toolprm_matcher *both[] = {start.get(), later.get()};
  CHECK_OK(toolprm_fill_masks(both, 2, rows.data(), words, 4));
  m.fill_mask(row);
  CHECK(std::equal(row.begin(), row.end(), rows.begin() + static_cast<std::ptrdiff_t>(words)));
  m.rollback(1);
  m.fill_mask(row);
  CHECK(std::equal(row.begin(), row.end(), rows.begin()));
  CHECK_OK(toolprm_fill_masks(nullptr, 0, nullptr, 0, 0));
  CHECK_REFUSED(toolprm_fill_masks(both, 2, rows.data(), words - 3, 1), TOOLPRM_INVALID_ARGUMENT, "words");
  CHECK_REFUSED(toolprm_fill_masks(both, 2, nullptr, words, 1), TOOLPRM_INVALID_ARGUMENT, "rows");
  const toolprm_matcher *holed[] = {start.get(), nullptr};
  CHECK_REFUSED(toolprm_fill_masks(holed, 2, rows.data(), words, 1), TOOLPRM_INVALID_ARGUMENT, "matcher");
}

// ---------------------------------------------------------------------------------------------- tokenizers

struct Calls {
  int tokenized = 0, grown = 0, destroyed = 0;
  std::int32_t answer = 0; // below 0: fails; else it is asked to make room for so many at first
};

std::int32_t tokenize(void *user, const char *bytes, std::size_t size, std::int32_t *ids, std::int32_t capacity) {
  Calls &calls = *static_cast<Calls *>(user);
  ++calls.tokenized;
  if (calls.answer < 0)
    return calls.answer;
  if (calls.answer > capacity) {
    ++calls.grown;
    return calls.answer;
  }
  std::int32_t count = 0;
  for (std::size_t i = 0; i < size; ++i)
    for (TokenId t = 0; t < static_cast<TokenId>(call_vocabulary()->size()); ++t)
      if (call_vocabulary()->token(t) == std::string(1, bytes[i])) {
        ids[count++] = t;
        break;
      }
  return count;
}

toolprm_tokenizer tokenizer_of(Calls &calls) {
  return {tokenize, [](void *user) { ++static_cast<Calls *>(user)->destroyed; }, &calls};
}

void tokenizers_are_called_and_dropped() {
  Calls calls;
  calls.answer = 1000; // more than it is first given room for
  {
    CMatcher matcher;
    {
      CVocabulary vocabulary;
      CGrammar grammar;
      const toolprm_tokenizer tokenizer = tokenizer_of(calls);
      make_vocabulary(vocabulary, &tokenizer);
      make_grammar(grammar);
      CHECK_OK(toolprm_matcher_create(grammar.get(), vocabulary.get(), matcher.out()));
    }
    CHECK_EQ(calls.destroyed, 0);
    TokenId open = 0;
    while (call_vocabulary()->token(open) != "[{")
      ++open;
    CHECK_OK(toolprm_matcher_accept(matcher.get(), open, nullptr, nullptr));
    const TokenId *forced = nullptr;
    std::size_t count = 0;
    CHECK_OK(toolprm_matcher_forced(matcher.get(), &forced, &count)); // "name": and more, a token a byte
    std::string written;
    for (std::size_t i = 0; i < count; ++i)
      written += call_vocabulary()->token(forced[i]);
    CHECK(written.starts_with("\"name\": "));
    CHECK(calls.grown > 0 && calls.tokenized > calls.grown);
    calls.answer = -7;
    TokenId quote = forced[0];
    CHECK_OK(toolprm_matcher_accept(matcher.get(), quote, nullptr, nullptr));
    CHECK_REFUSED(toolprm_matcher_forced(matcher.get(), &forced, &count), TOOLPRM_CALLBACK_FAILED, "-7");
  }
  CHECK_EQ(calls.destroyed, 1);

  Calls unused; // dropped where the vocabulary cannot be made
  const toolprm_tokenizer tokenizer = tokenizer_of(unused);
  CVocabulary none;
  const toolprm_bytes token{"a", 1};
  const std::int32_t stop = 3;
  CHECK_REFUSED(toolprm_vocabulary_create(&token, 1, &stop, 1, &tokenizer, none.out()), TOOLPRM_INVALID_ARGUMENT,
                "stop");
  CHECK(none.get() == nullptr && unused.destroyed == 1);
  const toolprm_tokenizer empty{};
  CHECK_REFUSED(toolprm_vocabulary_create(&token, 1, nullptr, 0, &empty, none.out()), TOOLPRM_INVALID_ARGUMENT,
                "tokenize");
}

// ---------------------------------------------------------------------------------------------- searches

// A model without memory: the logit of a token after a token at a position.
float logit(TokenId before, std::int32_t position, std::size_t token) {
  const std::uint64_t h =
      (static_cast<std::uint64_t>(before) * 1'000'003 + static_cast<std::uint64_t>(position)) * 0x9e3779b97f4a7c15 +
      token * 0xff51afd7ed558ccd;
  return static_cast<float>(h >> 40) / static_cast<float>(1 << 22);
}

double score_of(std::size_t n) { return static_cast<double>(n * 37 % 101) / 101; }

struct Logits2 {
  std::vector<float> full, few;
};

Logits2 logits_of(const toolprm_plan &plan) {
  Logits2 out;
  for (std::size_t o = 0; o < plan.output_count; ++o) {
    const auto at = static_cast<std::size_t>(plan.outputs[o]);
    if (o < plan.full_outputs)
      for (std::size_t t = 0; t < call_vocabulary()->size(); ++t)
        out.full.push_back(logit(plan.tokens[at], plan.positions[at], t));
    else
      for (std::size_t i = 0; i < plan.few_id_count; ++i)
        out.few.push_back(logit(plan.tokens[at], plan.positions[at], static_cast<std::size_t>(plan.few_ids[i])));
  }
  return out;
}

std::vector<double> scores_of(const toolprm_plan &plan) {
  std::vector<double> scores;
  for (std::size_t i = 0; i < plan.request_count; ++i)
    scores.push_back(score_of(plan.prefix_count > 0 ? i + 1 : static_cast<std::size_t>(plan.outputs[i])));
  return scores;
}

struct Case {
  Strategy strategy;
  std::int32_t beams, width;
  Scoring scoring;
  bool distinct = false;
};

constexpr Case kCases[] = {{Strategy::kGreedy, 1, 1, Scoring::kNone},
                           {Strategy::kSample, 1, 5, Scoring::kNone},
                           {Strategy::kStepBeam, 2, 3, Scoring::kModel},
                           {Strategy::kStepBeam, 2, 4, Scoring::kExternal},
                           {Strategy::kStepBeam, 2, 3, Scoring::kExternal, true},
                           {Strategy::kTokenBeam, 3, 1, Scoring::kNone}};

const std::vector<TokenId> kPrompt{3, 1, 4, 1, 5, 9, 2, 6};

SearchConfig small_pool() {
  SearchConfig config;
  config.policy.block_size = config.reward.block_size = 4;
  config.prompt_tokens = 3;
  return config;
}

// The same plan by the C++ interface, for the functions above.
toolprm_plan seen_as_c(const Plan &p) {
  toolprm_plan out{};
  out.output_count = p.outputs.size();
  out.full_outputs = static_cast<std::size_t>(p.full_outputs);
  out.outputs = p.outputs.data();
  out.tokens = p.tokens.data();
  out.positions = p.positions.data();
  out.few_ids = p.few_ids.data();
  out.few_id_count = p.few_ids.size();
  out.request_count = p.requests.size();
  out.prefix_count = p.prefixes_to_score.size();
  return out;
}

std::map<std::int64_t, Result> search_in_cpp() {
  Search search(small_pool());
  auto format = std::make_shared<RewardFormat>();
  format->tokenize = [](std::string_view text) { return std::vector<TokenId>(text.begin(), text.end()); };
  format->tags = {{{1}, {2, 3}, {4}, {}, {5}}};
  std::map<std::int64_t, Result> results;
  std::uint64_t seed = 0;
  for (const Case &c : kCases) {
    Request request{Matcher(calls_grammar(), call_vocabulary())};
    request.options.strategy = c.strategy;
    request.options.beams = c.beams;
    request.options.width = c.width;
    request.options.distinct = c.distinct;
    request.options.max_tokens = 60;
    request.options.seed = seed++;
    request.scoring = c.scoring;
    request.prompt = request.reward_prompt = kPrompt;
    request.reward = format;
    results[search.add(std::move(request))];
  }
  for (const Plan *plan = &search.plan(); plan->kind != PlanKind::kDone; plan = &search.plan()) {
    const toolprm_plan view = seen_as_c(*plan);
    if (plan->kind == PlanKind::kDecode) {
      const Logits2 logits = logits_of(view);
      const Draws drawn = draw(*plan, logits.full, logits.few);
      CHECK(drawn.failures.empty());
      search.commit_tokens(drawn.tokens, drawn.logprobs, drawn.perturbed);
    } else {
      search.commit_scores(scores_of(view));
    }
  }
  for (auto &[id, result] : results)
    result = search.take(id);
  return results;
}

std::int32_t bytes_as_ids(void *, const char *bytes, std::size_t size, std::int32_t *ids, std::int32_t capacity) {
  for (std::size_t i = 0; i < size && i < static_cast<std::size_t>(capacity); ++i)
    ids[i] = bytes[i];
  return static_cast<std::int32_t>(size);
}

void make_search(CSearch &search) {
  toolprm_search_config config;
  CHECK_OK(toolprm_search_config_init(&config, sizeof config));
  CHECK_EQ(config.prompt_tokens, SearchConfig{}.prompt_tokens);
  config.policy.block_size = config.reward.block_size = 4;
  config.prompt_tokens = 3;
  CHECK_OK(toolprm_search_create(&config, search.out()));
}

std::int64_t add(const CSearch &search, const Case &c, std::uint64_t seed = 0) {
  CMatcher matcher;
  CFormat format;
  make_matcher(matcher);
  const toolprm_tokenizer tokenizer{bytes_as_ids, nullptr, nullptr};
  const std::int32_t ids[] = {1, 2, 3, 4, 5};
  const toolprm_ids tags[5] = {{ids, 1}, {ids + 1, 2}, {ids + 3, 1}, {nullptr, 0}, {ids + 4, 1}};
  CHECK_OK(toolprm_reward_format_create(&tokenizer, tags, format.out()));
  toolprm_request request;
  CHECK_OK(toolprm_request_init(&request, sizeof request));
  CHECK(request.strategy == TOOLPRM_STEP_BEAM && request.forced_runs == 1 && request.max_tokens == 512);
  request.matcher = matcher.get();
  request.strategy = static_cast<std::int32_t>(c.strategy);
  request.beams = c.beams;
  request.width = c.width;
  request.distinct = c.distinct;
  request.max_tokens = 60;
  request.seed = seed;
  request.scoring = static_cast<std::int32_t>(c.scoring);
  request.prompt = request.reward_prompt = {kPrompt.data(), kPrompt.size()};
  request.reward = format.get();
  std::int64_t id = -1;
  CHECK_OK(toolprm_search_add(search.get(), &request, &id));
  return id;
}

toolprm_plan plan_of(const CSearch &search, std::int32_t side = TOOLPRM_ANY_SIDE) {
  toolprm_plan plan;
  plan.struct_size = sizeof plan;
  CHECK_OK(toolprm_search_plan(search.get(), side, &plan));
  return plan;
}

struct Drawn {
  std::vector<std::int32_t> tokens;
  std::vector<double> logprobs, perturbed;
};

Drawn draw_of(const CSearch &search, const toolprm_plan &plan, const Logits2 &logits) {
  Drawn d{std::vector<std::int32_t>(plan.sample_count), std::vector<double>(plan.sample_count),
          std::vector<double>(2 * plan.sample_count)};
  CHECK_OK(toolprm_search_draw(search.get(), logits.full.data(), call_vocabulary()->size(), logits.few.data(),
                               d.tokens.data(), d.logprobs.data(), d.perturbed.data()));
  return d;
}

void commit(const CSearch &search, const Drawn &d) {
  CHECK_OK(toolprm_search_commit_tokens(search.get(), d.tokens.data(), d.logprobs.data(), d.perturbed.data(),
                                        d.tokens.size()));
}

// Runs a plan; false where there was nothing to run.
bool pass(const CSearch &search) {
  const toolprm_plan plan = plan_of(search);
  if (plan.kind == TOOLPRM_DECODE)
    commit(search, draw_of(search, plan, logits_of(plan)));
  else if (plan.kind == TOOLPRM_SCORE) {
    const std::vector<double> scores = scores_of(plan);
    CHECK_OK(toolprm_search_commit_scores(search.get(), scores.data(), scores.size()));
  }
  return plan.kind != TOOLPRM_DONE;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void check_scored(const toolprm_scored_step *steps, std::size_t count, const std::vector<ScoredStep> &expected) {
  CHECK_EQ(count, expected.size());
  for (std::size_t i = 0; i < std::min(count, expected.size()); ++i) {
    check_step(steps[i].step, expected[i].step);
    CHECK(same(steps[i].score, expected[i].score) && same(steps[i].logprob, expected[i].logprob));
  }
}

void searches_do_the_same() {
  const std::map<std::int64_t, Result> expected = search_in_cpp();
  CSearch search;
  make_search(search);
  std::uint64_t seed = 0;
  std::vector<std::int64_t> ids;
  for (const Case &c : kCases)
    ids.push_back(add(search, c, seed++));
  std::size_t waiting = 0, under_way = 0;
  CHECK_OK(toolprm_search_load(search.get(), &waiting, &under_way));
  CHECK_EQ(waiting + under_way, ids.size());
  while (pass(search))
    ;
  const std::int64_t *ended = nullptr;
  std::size_t count = 0;
  CHECK_OK(toolprm_search_ended(search.get(), &ended, &count));
  CHECK(std::vector<std::int64_t>(ended, ended + count) == ids);
  for (const auto &[id, result] : expected) {
    const toolprm_scored_step *steps = nullptr;
    CHECK_OK(toolprm_search_certain(search.get(), id, 0, &steps, &count));
    CHECK(count >= result.answers[0].steps.size() || result.answers.size() > 1);
    CResult c;
    CHECK_OK(toolprm_search_take(search.get(), id, c.out()));
    std::size_t answers = 0, nodes = 0;
    CHECK_OK(toolprm_result_size(c.get(), &answers, &nodes));
    CHECK_EQ(answers, result.answers.size());
    CHECK_EQ(nodes, result.tree.size());
    for (std::size_t i = 0; i < result.answers.size(); ++i) {
      const Answer &a = result.answers[i];
      toolprm_answer got;
      got.struct_size = sizeof got;
      CHECK_OK(toolprm_result_answer(c.get(), i, &got));
      CHECK_EQ(text(got.text), a.text);
      CHECK(std::vector<TokenId>(got.tokens.data, got.tokens.data + got.tokens.size) == a.tokens);
      CHECK(same(got.rank, a.rank) && same(got.score, a.score) && same(got.logprob, a.logprob));
      CHECK(got.multiplicity == a.multiplicity && got.closed == (a.closed ? 1 : 0) && got.node == a.node);
      check_scored(got.steps, got.step_count, a.steps);
    }
    for (std::size_t i = 0; i < result.tree.size(); ++i) {
      const TreeNode &n = result.tree[i];
      toolprm_node got;
      got.struct_size = sizeof got;
      CHECK_OK(toolprm_result_node(c.get(), i, &got));
      CHECK(got.parent == n.parent && got.multiplicity == n.multiplicity && same(got.rank, n.rank));
      CHECK(got.kept == (n.kept ? 1 : 0) && got.finished == (n.finished ? 1 : 0) && got.closed == (n.closed ? 1 : 0));
      check_scored(got.steps, got.step_count, n.steps);
    }
    toolprm_stats stats;
    stats.struct_size = sizeof stats;
    CHECK_OK(toolprm_result_stats(c.get(), &stats));
    CHECK_EQ(stats.policy_tokens, result.stats.policy_tokens);
    CHECK_EQ(stats.reward_tokens, result.stats.reward_tokens);
    CHECK_EQ(stats.forward_passes, result.stats.forward_passes);
    CHECK_EQ(stats.preemptions, result.stats.preemptions);
    toolprm_answer none;
    none.struct_size = sizeof none;
    CHECK_REFUSED(toolprm_result_answer(c.get(), answers, &none), TOOLPRM_INVALID_ARGUMENT, "answers");
    toolprm_node no_node;
    no_node.struct_size = sizeof no_node;
    CHECK_REFUSED(toolprm_result_node(c.get(), nodes, &no_node), TOOLPRM_INVALID_ARGUMENT, "nodes");
  }
  CHECK_OK(toolprm_search_clear_cache(search.get()));
}

void masks_of_a_plan_are_those_of_its_rows() {
  CSearch search;
  make_search(search);
  add(search, kCases[1]);
  toolprm_plan plan = plan_of(search);
  while (plan.sample_count == 0) { // the prompt is read first
    commit(search, draw_of(search, plan, logits_of(plan)));
    plan = plan_of(search);
  }
  CHECK_EQ(plan.mask_count, 1u);
  const std::size_t words = call_vocabulary()->words() + 1;
  std::vector<std::int32_t> rows(words, -1), row(words);
  CHECK_OK(toolprm_search_plan_masks(search.get(), rows.data(), words));
  Matcher(calls_grammar(), call_vocabulary()).fill_mask(row);
  CHECK(rows == row);
  CHECK_REFUSED(toolprm_search_plan_masks(search.get(), rows.data(), 0), TOOLPRM_INVALID_ARGUMENT, "words");
  CHECK_REFUSED(toolprm_search_plan_masks(search.get(), nullptr, words), TOOLPRM_INVALID_ARGUMENT, "rows");
}

void prefixes_are_handed_out() {
  CSearch search;
  make_search(search);
  add(search, kCases[3]);
  toolprm_plan plan = plan_of(search);
  while (plan.kind == TOOLPRM_DECODE) {
    commit(search, draw_of(search, plan, logits_of(plan)));
    plan = plan_of(search);
  }
  CHECK(plan.kind == TOOLPRM_SCORE && plan.prefix_count > 0 && plan.request_count == plan.prefix_count);
  const toolprm_step *steps = nullptr;
  std::size_t count = 0;
  for (std::size_t i = 0; i < plan.prefix_count; ++i) {
    CHECK_OK(toolprm_search_prefix(search.get(), i, &steps, &count));
    CHECK(count > 0 && steps[0].start == 0 && (steps[0].kind == TOOLPRM_FUNC_NAME || steps[0].text.data[0] == '['));
  }
  CHECK_REFUSED(toolprm_search_prefix(search.get(), plan.prefix_count, &steps, &count), TOOLPRM_INVALID_ARGUMENT,
                "prefixes");
  std::vector<double> scores(plan.request_count, 0.5);
  scores[0] = std::numeric_limits<double>::quiet_NaN();
  CHECK_REFUSED(toolprm_search_commit_scores(search.get(), scores.data(), scores.size()), TOOLPRM_INVALID_ARGUMENT,
                "between 0 and 1");
  CHECK_REFUSED(toolprm_search_commit_scores(search.get(), scores.data(), scores.size() - 1), TOOLPRM_INVALID_ARGUMENT,
                "as many");
  CHECK_REFUSED(toolprm_search_commit_scores(search.get(), nullptr, scores.size()), TOOLPRM_INVALID_ARGUMENT, "NULL");
  scores[0] = 0.5;
  CHECK_OK(toolprm_search_commit_scores(search.get(), scores.data(), scores.size()));
}

toolprm_status take(const CSearch &search, std::int64_t id) {
  CResult result;
  const toolprm_status status = toolprm_search_take(search.get(), id, result.out());
  CHECK_EQ(result.get() != nullptr, status == TOOLPRM_OK);
  return status;
}

void what_fails_fails_alone() {
  CSearch search;
  make_search(search);
  const std::int64_t bad = add(search, kCases[0]), good = add(search, kCases[0]), cancelled = add(search, kCases[1]);
  CHECK_REFUSED(take(search, bad), TOOLPRM_UNKNOWN_REQUEST, "not finished");
  CHECK_REFUSED(take(search, 99), TOOLPRM_UNKNOWN_REQUEST, "unknown");
  bool spoilt = false;
  while (true) {
    const toolprm_plan plan = plan_of(search);
    if (plan.kind == TOOLPRM_DONE)
      break;
    Logits2 logits = logits_of(plan);
    for (std::size_t o = 0; o < plan.output_count; ++o)
      if (plan.requests[o] == bad) {
        spoilt = true;
        const std::size_t width = o < plan.full_outputs ? call_vocabulary()->size() : plan.few_id_count;
        const std::size_t row = o < plan.full_outputs ? o : o - plan.full_outputs;
        std::vector<float> &values = o < plan.full_outputs ? logits.full : logits.few;
        std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                    std::numeric_limits<float>::quiet_NaN());
      }
    draw_of(search, plan, logits); // twice: nothing changes
    const Drawn drawn = draw_of(search, plan, logits);
    CHECK_OK(toolprm_search_cancel(search.get(), cancelled));
    if (!drawn.tokens.empty()) {
      CHECK_REFUSED(toolprm_search_commit_tokens(search.get(), drawn.tokens.data(), drawn.logprobs.data(), nullptr,
                                                 drawn.tokens.size() - 1),
                    TOOLPRM_INVALID_ARGUMENT, "as many");
      std::vector<std::int32_t> illegal(drawn.tokens.size(), 12345);
      if (plan.requests[plan.output_count - 1] == good)
        CHECK_REFUSED(
            toolprm_search_commit_tokens(search.get(), illegal.data(), drawn.logprobs.data(), nullptr, illegal.size()),
            TOOLPRM_INVALID_ARGUMENT, "not legal");
    }
    commit(search, drawn);
  }
  CHECK(spoilt);
  const std::int64_t *ended = nullptr;
  std::size_t count = 0;
  CHECK_OK(toolprm_search_ended(search.get(), &ended, &count));
  CHECK(std::vector<std::int64_t>(ended, ended + count) == (std::vector<std::int64_t>{bad, good}));
  CHECK_REFUSED(take(search, bad), TOOLPRM_BAD_LOGITS, "NaN");
  CHECK_REFUSED(take(search, bad), TOOLPRM_UNKNOWN_REQUEST, "unknown");
  CHECK_OK(take(search, good));
  const toolprm_scored_step *steps = nullptr;
  CHECK_REFUSED(toolprm_search_certain(search.get(), good, 0, &steps, &count), TOOLPRM_UNKNOWN_REQUEST, "unknown");

  const std::int64_t unlucky = add(search, kCases[0]);
  CHECK_REFUSED(toolprm_search_fail(search.get(), TOOLPRM_POLICY, "no"), TOOLPRM_INVALID_ARGUMENT, "no open plan");
  plan_of(search, TOOLPRM_POLICY);
  CHECK_REFUSED(toolprm_search_fail(search.get(), TOOLPRM_ANY_SIDE, "no"), TOOLPRM_INVALID_ARGUMENT, "side");
  CHECK_OK(toolprm_search_fail(search.get(), TOOLPRM_POLICY, "the device is gone"));
  CHECK_REFUSED(take(search, unlucky), TOOLPRM_PASS_FAILED, "the device is gone");
}

void nothing_is_committed_that_was_not_asked_for() {
  CSearch search;
  make_search(search);
  std::int32_t token = 0;
  double number = 0;
  CHECK_REFUSED(toolprm_search_commit_tokens(search.get(), &token, &number, nullptr, 1), TOOLPRM_INVALID_ARGUMENT,
                "plan() first");
  CHECK_REFUSED(toolprm_search_commit_scores(search.get(), &number, 1), TOOLPRM_INVALID_ARGUMENT, "plan() first");
  CHECK_REFUSED(toolprm_search_draw(search.get(), nullptr, 0, nullptr, &token, &number, &number),
                TOOLPRM_INVALID_ARGUMENT, "no open plan");
  CHECK_REFUSED(toolprm_search_plan_masks(search.get(), &token, 1), TOOLPRM_INVALID_ARGUMENT, "no open plan");
  CHECK_EQ(plan_of(search).kind, TOOLPRM_DONE);
  toolprm_plan plan;
  plan.struct_size = sizeof plan;
  CHECK_REFUSED(toolprm_search_plan(search.get(), 7, &plan), TOOLPRM_INVALID_ARGUMENT, "side");
  add(search, kCases[0]);
  toolprm_plan open = plan_of(search);
  while (open.output_count == 0) {
    commit(search, draw_of(search, open, logits_of(open)));
    open = plan_of(search);
  }
  CHECK_REFUSED(toolprm_search_draw(search.get(), nullptr, 10, nullptr, &token, &number, &number),
                TOOLPRM_INVALID_ARGUMENT, "NULL");
}

// ---------------------------------------------------------------------------------------------- bad input

void structs_say_their_size() {
  CSearch search;
  toolprm_search_config config;
  CHECK_REFUSED(toolprm_search_config_init(&config, 3), TOOLPRM_INVALID_ARGUMENT, "size");
  CHECK_REFUSED(toolprm_search_config_init(&config, 1 << 20), TOOLPRM_INVALID_ARGUMENT, "size");
  CHECK_OK(toolprm_search_config_init(&config, sizeof config));
  config.struct_size = 1;
  CHECK_REFUSED(toolprm_search_create(&config, search.out()), TOOLPRM_INVALID_ARGUMENT, "struct_size");
  // A caller from the future, with fields of its own.
  struct {
    toolprm_search_config config;
    std::int64_t more;
  } newer;
  newer.more = -1;
  CHECK_OK(toolprm_search_config_init(&newer.config, sizeof newer));
  CHECK_EQ(newer.more, 0);
  CHECK_EQ(newer.config.struct_size, sizeof newer);
  CHECK_OK(toolprm_search_create(&newer.config, search.out()));
  newer.more = 1;
  CHECK_REFUSED(toolprm_search_create(&newer.config, search.out()), TOOLPRM_INVALID_ARGUMENT, "does not know");
  CHECK(search.get() == nullptr);
  CHECK_OK(toolprm_search_create(nullptr, search.out()));
  struct {
    toolprm_plan plan;
    std::int64_t more;
  } plan;
  plan.plan.struct_size = sizeof plan;
  plan.more = 5;
  CHECK_OK(toolprm_search_plan(search.get(), TOOLPRM_ANY_SIDE, &plan.plan));
  CHECK_EQ(plan.more, 0);
  plan.plan.struct_size = 0;
  CHECK_REFUSED(toolprm_search_plan(search.get(), TOOLPRM_ANY_SIDE, &plan.plan), TOOLPRM_INVALID_ARGUMENT,
                "struct_size");
}

void options_are_checked() {
  CSearch search;
  make_search(search);
  CMatcher matcher;
  make_matcher(matcher);
  toolprm_request good;
  CHECK_OK(toolprm_request_init(&good, sizeof good));
  good.prompt = {kPrompt.data(), kPrompt.size()};
  std::int64_t id = 0;
  CHECK_REFUSED(toolprm_search_add(search.get(), &good, &id), TOOLPRM_INVALID_ARGUMENT, "matcher");
  good.matcher = matcher.get();
  const auto refused = [&](auto change, toolprm_status status, const char *part) {
    toolprm_request request = good;
    change(request);
    CHECK_REFUSED(toolprm_search_add(search.get(), &request, &id), status, part);
  };
  refused([](toolprm_request &r) { r.strategy = 4; }, TOOLPRM_INVALID_ARGUMENT, "strategy");
  refused([](toolprm_request &r) { r.aggregate = -1; }, TOOLPRM_INVALID_ARGUMENT, "aggregate");
  refused([](toolprm_request &r) { r.scoring = 3; }, TOOLPRM_INVALID_ARGUMENT, "scoring");
  refused([](toolprm_request &r) { r.scoring = TOOLPRM_SCORING_MODEL; }, TOOLPRM_INVALID_ARGUMENT, "format");
  refused([](toolprm_request &r) { r.temperature = std::numeric_limits<double>::quiet_NaN(); },
          TOOLPRM_INVALID_ARGUMENT, "temperature");
  refused([](toolprm_request &r) { r.width = 0; }, TOOLPRM_INVALID_ARGUMENT, "width");
  refused([](toolprm_request &r) { r.prompt.size = 0; }, TOOLPRM_INVALID_ARGUMENT, "prompt");
  refused([](toolprm_request &r) { r.prompt.data = nullptr; }, TOOLPRM_INVALID_ARGUMENT, "prompt");
  GrammarBuilder b;
  const auto bytes = b.build(b.sequence({b.literal("[12, 12, 12]"), b.stop()}), false)->serialize();
  CGrammar long_one;
  CVocabulary vocabulary;
  CMatcher long_matcher;
  CHECK_OK(toolprm_grammar_deserialize(bytes.data(), bytes.size(), 0, long_one.out()));
  make_vocabulary(vocabulary);
  CHECK_OK(toolprm_matcher_create(long_one.get(), vocabulary.get(), long_matcher.out()));
  refused(
      [&](toolprm_request &r) {
        r.matcher = long_matcher.get();
        r.max_tokens = 2;
      },
      TOOLPRM_BUDGET_EXCEEDED, "tokens");
  refused([](toolprm_request &r) { r.struct_size = 8; }, TOOLPRM_INVALID_ARGUMENT, "struct_size");
  CHECK_EQ(plan_of(search).kind, TOOLPRM_DONE); // nothing was added
  toolprm_search_config config;
  CHECK_OK(toolprm_search_config_init(&config, sizeof config));
  config.most_rows = 0;
  CHECK_REFUSED(toolprm_search_create(&config, search.out()), TOOLPRM_INVALID_ARGUMENT, "row");
}

void grammars_are_checked() {
  CGrammar grammar;
  auto bytes = calls_grammar()->serialize();
  CHECK_REFUSED(toolprm_grammar_deserialize(bytes.data(), bytes.size() - 1, 0, grammar.out()),
                TOOLPRM_MALFORMED_GRAMMAR, "bytes");
  CHECK_REFUSED(toolprm_grammar_deserialize("no grammar at all", 17, 0, grammar.out()), TOOLPRM_MALFORMED_GRAMMAR,
                "do not begin");
  CHECK_REFUSED(toolprm_grammar_deserialize(nullptr, 17, 0, grammar.out()), TOOLPRM_INVALID_ARGUMENT, "data");
  CHECK_REFUSED(toolprm_grammar_deserialize(nullptr, 0, 0, grammar.out()), TOOLPRM_MALFORMED_GRAMMAR, "begin");
  CHECK_REFUSED(toolprm_grammar_deserialize(bytes.data(), bytes.size(), 20, grammar.out()), TOOLPRM_BUDGET_EXCEEDED,
                "more");
  CHECK_REFUSED(toolprm_grammar_deserialize(bytes.data(), bytes.size(), 0, nullptr), TOOLPRM_INVALID_ARGUMENT, "NULL");
  CHECK(grammar.get() == nullptr);
}

// Every function, with nothing at all.
void null_is_refused() {
  const auto no = [](toolprm_status status) {
    CHECK_EQ(status, TOOLPRM_INVALID_ARGUMENT);
    CHECK(std::strlen(toolprm_last_error()) > 0);
  };
  no(toolprm_vocabulary_create(nullptr, 1, nullptr, 0, nullptr, nullptr));
  CVocabulary vocabulary;
  no(toolprm_vocabulary_create(nullptr, 1, nullptr, 0, nullptr, vocabulary.out()));
  no(toolprm_grammar_deserialize(nullptr, 0, 0, nullptr));
  no(toolprm_matcher_create(nullptr, nullptr, nullptr));
  CMatcher matcher;
  no(toolprm_matcher_create(nullptr, nullptr, matcher.out()));
  no(toolprm_matcher_fork(nullptr, matcher.out()));
  no(toolprm_matcher_accept(nullptr, 0, nullptr, nullptr));
  no(toolprm_matcher_rollback(nullptr, 0));
  no(toolprm_matcher_fill_mask(nullptr, nullptr, 0));
  no(toolprm_fill_masks(nullptr, 1, nullptr, 0, 1));
  no(toolprm_matcher_forced(nullptr, nullptr, nullptr));
  no(toolprm_matcher_is_complete(nullptr, nullptr));
  no(toolprm_matcher_is_stopped(nullptr, nullptr));
  no(toolprm_matcher_text(nullptr, nullptr));
  CFormat format;
  no(toolprm_reward_format_create(nullptr, nullptr, format.out()));
  const toolprm_tokenizer tokenizer{bytes_as_ids, nullptr, nullptr};
  no(toolprm_reward_format_create(&tokenizer, nullptr, format.out()));
  no(toolprm_search_config_init(nullptr, sizeof(toolprm_search_config)));
  no(toolprm_request_init(nullptr, sizeof(toolprm_request)));
  no(toolprm_search_create(nullptr, nullptr));
  no(toolprm_search_add(nullptr, nullptr, nullptr));
  no(toolprm_search_cancel(nullptr, 0));
  no(toolprm_search_ended(nullptr, nullptr, nullptr));
  no(toolprm_search_load(nullptr, nullptr, nullptr));
  no(toolprm_search_take(nullptr, 0, nullptr));
  CResult result;
  no(toolprm_search_take(nullptr, 0, result.out()));
  no(toolprm_search_certain(nullptr, 0, 0, nullptr, nullptr));
  no(toolprm_search_plan(nullptr, 0, nullptr));
  no(toolprm_search_plan_masks(nullptr, nullptr, 0));
  no(toolprm_search_prefix(nullptr, 0, nullptr, nullptr));
  no(toolprm_search_draw(nullptr, nullptr, 0, nullptr, nullptr, nullptr, nullptr));
  no(toolprm_search_commit_tokens(nullptr, nullptr, nullptr, nullptr, 0));
  no(toolprm_search_commit_scores(nullptr, nullptr, 0));
  no(toolprm_search_fail(nullptr, 0, nullptr));
  no(toolprm_search_clear_cache(nullptr));
  no(toolprm_result_size(nullptr, nullptr, nullptr));
  no(toolprm_result_answer(nullptr, 0, nullptr));
  no(toolprm_result_node(nullptr, 0, nullptr));
  no(toolprm_result_stats(nullptr, nullptr));
  CSearch search;
  make_search(search);
  no(toolprm_search_add(search.get(), nullptr, nullptr));
  std::int64_t id = 0;
  no(toolprm_search_add(search.get(), nullptr, &id));
  no(toolprm_search_plan(search.get(), TOOLPRM_ANY_SIDE, nullptr));
  no(toolprm_search_load(search.get(), nullptr, nullptr));
  make_matcher(matcher);
  no(toolprm_matcher_fill_mask(matcher.get(), nullptr, 100));
  no(toolprm_matcher_text(matcher.get(), nullptr));
  for (int i = 0; i < 2; ++i) { // freeing nothing is fine
    toolprm_vocabulary_free(nullptr);
    toolprm_grammar_free(nullptr);
    toolprm_matcher_free(nullptr);
    toolprm_reward_format_free(nullptr);
    toolprm_search_free(nullptr);
    toolprm_result_free(nullptr);
  }
}

void each_thread_has_its_own_message() {
  CHECK_REFUSED(toolprm_matcher_rollback(nullptr, 0), TOOLPRM_INVALID_ARGUMENT, "matcher");
  std::thread([] {
    CHECK_EQ(std::string(toolprm_last_error()), "");
    CHECK_EQ(toolprm_search_clear_cache(nullptr), TOOLPRM_INVALID_ARGUMENT);
  }).join();
  CHECK(std::string(toolprm_last_error()).find("matcher") != std::string::npos);
}

} // namespace

int main() {
  versions_are_told();
  matchers_do_the_same();
  masks_are_filled_together();
  tokenizers_are_called_and_dropped();
  searches_do_the_same();
  masks_of_a_plan_are_those_of_its_rows();
  prefixes_are_handed_out();
  what_fails_fails_alone();
  nothing_is_committed_that_was_not_asked_for();
  structs_say_their_size();
  options_are_checked();
  grammars_are_checked();
  null_is_refused();
  each_thread_has_its_own_message();
  return check::report();
}
