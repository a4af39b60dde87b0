// The C interface: each function checks what it was given, calls the core, and turns exceptions into a status.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <new>
#include <optional>
#include <stdexcept>

#include "toolprm/draw.h"
#include "toolprm/grammar.h"
#include "toolprm/matcher.h"
#include "toolprm/search.h"
#include "toolprm/toolprm.h"

using namespace toolprm;

// ---------------------------------------------------------------------------------------------- what handles hold

struct toolprm_vocabulary {
  std::shared_ptr<const Vocabulary> vocabulary;
};

struct toolprm_grammar {
  std::shared_ptr<const Grammar> grammar;
};

struct toolprm_reward_format {
  std::shared_ptr<const RewardFormat> format;
};

// What a function of a matcher handed out last stays in the handle.
struct toolprm_matcher {
  explicit toolprm_matcher(Matcher m) : matcher(std::move(m)) {}
  Matcher matcher;
  std::vector<Step> steps;
  std::vector<toolprm_step> step_views;
  std::vector<TokenId> forced;
  std::string text;
};

struct toolprm_search {
  explicit toolprm_search(const SearchConfig &config) : search(config) {}
  Search search;
  std::array<const Plan *, 2> open{};           // the sides' open plans, null where there is none
  std::map<std::int64_t, std::string> failures; // requests whose logits were bad, until they are taken
  std::vector<std::int64_t> ended;
  std::vector<ScoredStep> certain;
  std::vector<toolprm_scored_step> certain_views;
  std::vector<toolprm_step> prefix_views;
};

struct toolprm_result {
  Result result;
  std::vector<std::vector<toolprm_scored_step>> answer_steps, node_steps;
};

namespace {

// ---------------------------------------------------------------------------------------------- errors

struct Failure : std::runtime_error {
  Failure(toolprm_status s, const std::string &message) : std::runtime_error(message), status(s) {}
  toolprm_status status;
};

thread_local std::string last_error;
thread_local bool lost_error = false; // there was no memory for the message

toolprm_status failed(toolprm_status status, const char *message) noexcept {
  try {
    last_error = message;
    lost_error = false;
  } catch (...) {
    lost_error = true;
  }
  return status;
}

// The status of the exception that is being handled.
toolprm_status translate() noexcept {
  try {
    throw;
  } catch (const Failure &error) {
    return failed(error.status, error.what());
  } catch (const BudgetError &error) {
    return failed(TOOLPRM_BUDGET_EXCEEDED, error.what());
  } catch (const MalformedGrammar &error) {
    return failed(TOOLPRM_MALFORMED_GRAMMAR, error.what());
  } catch (const OutOfBlocks &error) {
    return failed(TOOLPRM_OUT_OF_BLOCKS, error.what());
  } catch (const std::invalid_argument &error) {
    return failed(TOOLPRM_INVALID_ARGUMENT, error.what());
  } catch (const std::out_of_range &error) { // of the search alone: others are checked before
    return failed(TOOLPRM_UNKNOWN_REQUEST, error.what());
  } catch (const std::bad_alloc &) {
    return failed(TOOLPRM_OUT_OF_MEMORY, "there is not enough memory");
  } catch (const std::length_error &) {
    return failed(TOOLPRM_OUT_OF_MEMORY, "there is not enough memory");
  } catch (const std::exception &error) {
    return failed(TOOLPRM_INTERNAL, error.what());
  } catch (...) {
    return failed(TOOLPRM_INTERNAL, "an exception of an unknown kind");
  }
}

template <class Work> toolprm_status guarded(Work work) noexcept {
  try {
    work();
    return TOOLPRM_OK;
  } catch (...) {
    return translate();
  }
}

void require(bool ok, const std::string &message) {
  if (!ok)
    throw Failure(TOOLPRM_INVALID_ARGUMENT, message);
}

// Null pointers, by the names of the parameters.
template <class T> T &given(T *pointer, const char *name) {
  require(pointer != nullptr, std::string(name) + " must not be NULL");
  return *pointer;
}

template <class T> std::span<const T> array(const T *data, std::size_t size, const char *name) {
  require(data != nullptr || size == 0,
          std::string(name) + " must not be NULL where there are " + std::to_string(size));
  return {data, size};
}

// A new handle for out, which is null until all is well.
template <class Handle, class Make> toolprm_status make_handle(Handle **out, const char *name, Make make) noexcept {
  if (out)
    *out = nullptr;
  return guarded([&] {
    given(out, name);
    *out = make().release();
  });
}

// ---------------------------------------------------------------------------------------------- sized structs

constexpr std::size_t kMostStruct = 4096; // larger ones were not set

// What a caller that may know fewer fields, or more, has given: fields that it does not know have their defaults.
template <class T> T read_struct(const T &in, const T &defaults, std::size_t least) {
  require(in.struct_size >= least && in.struct_size <= kMostStruct,
          "struct_size is " + std::to_string(in.struct_size) + ", and must be that of the struct, set by its _init");
  const auto *bytes = reinterpret_cast<const unsigned char *>(&in);
  for (std::size_t i = sizeof(T); i < in.struct_size; ++i)
    require(bytes[i] == 0, "a field is set that this version of the library does not know");
  T out = defaults;
  std::memcpy(&out, &in, std::min(in.struct_size, sizeof(T)));
  return out;
}

// Gives a caller as much of a struct as it knows; what only it knows is zero.
template <class T> void write_struct(T &out, T value, std::size_t least) {
  const std::size_t size = out.struct_size;
  require(size >= least && size <= kMostStruct,
          "struct_size is " + std::to_string(size) + ", and must be set to sizeof the struct");
  value.struct_size = size;
  std::memcpy(&out, &value, std::min(size, sizeof(T)));
  if (size > sizeof(T))
    std::memset(reinterpret_cast<unsigned char *>(&out) + sizeof(T), 0, size - sizeof(T));
}

template <class T> toolprm_status init_struct(T *out, std::size_t size, const T &defaults) noexcept {
  return guarded([&] {
    given(out, "the struct");
    require(size >= sizeof(out->struct_size) && size <= kMostStruct, "size must be sizeof the struct");
    out->struct_size = size;
    write_struct(*out, defaults, sizeof(T)); // of the first revision: none is smaller
  });
}

// ---------------------------------------------------------------------------------------------- values

toolprm_bytes view(const std::string &text) { return {text.data(), text.size()}; }

toolprm_step view(const Step &step) {
  return {static_cast<std::int32_t>(step.kind), step.start, step.end, step.value, view(step.path), view(step.text)};
}

toolprm_scored_step view(const ScoredStep &scored) { return {view(scored.step), scored.score, scored.logprob}; }

template <class View, class T> std::vector<View> views(const std::vector<T> &values) {
  std::vector<View> out;
  out.reserve(values.size());
  for (const T &value : values)
    out.push_back(view(value));
  return out;
}

// Hands an array out; nobody needs to take it.
template <class T> void give(const std::vector<T> &values, const T **data, std::size_t *count) {
  if (data)
    *data = values.data();
  if (count)
    *count = values.size();
}

template <class Enum> Enum read_enum(std::int32_t value, std::int32_t last, const char *name) {
  require(value >= 0 && value <= last,
          std::string(name) + " must be between 0 and " + std::to_string(last) + ", not " + std::to_string(value));
  return static_cast<Enum>(value);
}

std::vector<TokenId> read_ids(const toolprm_ids &ids, const char *name) {
  const auto values = array(ids.data, ids.size, name);
  return {values.begin(), values.end()};
}

// A caller's tokenizer, which is dropped when nothing holds it any more.
class CallerTokenizer {
public:
  explicit CallerTokenizer(const toolprm_tokenizer &given) : given_(given) {}
  CallerTokenizer(const CallerTokenizer &) = delete;
  CallerTokenizer &operator=(const CallerTokenizer &) = delete;
  ~CallerTokenizer() {
    if (given_.destroy)
      given_.destroy(given_.user);
  }

  bool callable() const { return given_.tokenize != nullptr; }
  std::vector<TokenId> operator()(std::string_view bytes) const {
    std::vector<TokenId> ids(bytes.size() + 8);
    std::size_t count = call(bytes, ids);
    if (count > ids.size()) {
      ids.resize(count);
      count = call(bytes, ids);
      if (count > ids.size())
        throw Failure(TOOLPRM_CALLBACK_FAILED, "the tokenizer asked for room for its ids a second time");
    }
    ids.resize(count);
    return ids;
  }

private:
  std::size_t call(std::string_view bytes, std::vector<TokenId> &ids) const {
    const std::int32_t count =
        given_.tokenize(given_.user, bytes.data(), bytes.size(), ids.data(), static_cast<std::int32_t>(ids.size()));
    if (count < 0)
      throw Failure(TOOLPRM_CALLBACK_FAILED, "the tokenizer failed: it returned " + std::to_string(count));
    return static_cast<std::size_t>(count);
  }

  toolprm_tokenizer given_;
};

Tokenize read_tokenizer(const std::shared_ptr<const CallerTokenizer> &tokenizer) {
  if (!tokenizer)
    return {};
  require(tokenizer->callable(), "tokenizer->tokenize must not be NULL");
  return [tokenizer](std::string_view bytes) { return (*tokenizer)(bytes); };
}

std::shared_ptr<const CallerTokenizer> hold(const toolprm_tokenizer *tokenizer) {
  return tokenizer ? std::make_shared<const CallerTokenizer>(*tokenizer) : nullptr;
}

// ---------------------------------------------------------------------------------------------- search

static_assert(sizeof(Segment) == 2 * sizeof(std::int32_t) && sizeof(SlotCopy) == 3 * sizeof(std::int32_t) &&
              sizeof(Perturbed) == 2 * sizeof(double) && sizeof(Sampling) == 1);
static_assert(static_cast<int>(StepKind::kTotalFinish) == TOOLPRM_TOTAL_FINISH &&
              static_cast<int>(Strategy::kTokenBeam) == TOOLPRM_TOKEN_BEAM &&
              static_cast<int>(Aggregate::kMean) == TOOLPRM_MEAN &&
              static_cast<int>(Scoring::kExternal) == TOOLPRM_SCORING_EXTERNAL &&
              static_cast<int>(Side::kReward) == TOOLPRM_REWARD && static_cast<int>(PlanKind::kDone) == TOOLPRM_DONE &&
              static_cast<int>(Sampling::kLikeliest) == TOOLPRM_LIKELIEST);

toolprm_search_config default_config() {
  const SearchConfig c;
  const auto pool = [](const PoolOptions &o) { return toolprm_pool_options{o.block_size, o.capacity, o.idle}; };
  return {sizeof(toolprm_search_config), pool(c.policy), pool(c.reward), c.prompt_tokens, c.most_requests, c.most_rows};
}

toolprm_request default_request() {
  const SearchOptions o;
  toolprm_request r{};
  r.struct_size = sizeof r;
  r.strategy = static_cast<std::int32_t>(o.strategy);
  r.beams = o.beams;
  r.width = o.width;
  r.aggregate = static_cast<std::int32_t>(o.aggregate);
  r.forced_runs = o.forced_runs ? 1 : 0;
  r.max_tokens = o.max_tokens;
  r.temperature = o.temperature;
  return r;
}

Request read_request(const toolprm_request &given_request) {
  const toolprm_request r = read_struct(given_request, default_request(), sizeof(toolprm_request));
  Request out{given(r.matcher, "request->matcher").matcher};
  SearchOptions &o = out.options;
  o.strategy = read_enum<Strategy>(r.strategy, TOOLPRM_TOKEN_BEAM, "strategy");
  o.beams = r.beams;
  o.width = r.width;
  o.aggregate = read_enum<Aggregate>(r.aggregate, TOOLPRM_MEAN, "aggregate");
  out.scoring = read_enum<Scoring>(r.scoring, TOOLPRM_SCORING_EXTERNAL, "scoring");
  o.distinct = r.distinct != 0;
  o.independent = r.independent != 0;
  o.forced_runs = r.forced_runs != 0;
  o.max_tokens = r.max_tokens;
  o.temperature = r.temperature;
  o.policy_weight = r.policy_weight;
  o.confidence = r.confidence;
  o.seed = r.seed;
  out.reward_room = r.reward_room;
  out.prompt = read_ids(r.prompt, "prompt");
  out.reward_prompt = read_ids(r.reward_prompt, "reward_prompt");
  if (r.reward)
    out.reward = r.reward->format;
  return out;
}

toolprm_plan view(const Plan &p) {
  const auto numbers = [](const auto &values) { return reinterpret_cast<const std::int32_t *>(values.data()); };
  toolprm_plan out{};
  out.kind = static_cast<std::int32_t>(p.kind);
  out.blocks = p.blocks;
  out.token_count = p.tokens.size();
  out.row_count = p.lengths.size();
  out.segment_count = p.segments.size();
  out.context_width = static_cast<std::size_t>(p.context_width);
  out.table_width = static_cast<std::size_t>(p.table_width);
  out.copy_count = p.copies.size();
  out.output_count = p.outputs.size();
  out.tokens = p.tokens.data();
  out.positions = p.positions.data();
  out.rows = p.rows.data();
  out.slots = p.slots.data();
  out.segments = numbers(p.segments);
  out.contexts = p.contexts.data();
  out.lengths = p.lengths.data();
  out.block_tables = p.block_tables.data();
  out.outputs = p.outputs.data();
  out.copies = numbers(p.copies);
  out.full_outputs = static_cast<std::size_t>(p.full_outputs);
  out.few_id_count = p.few_ids.size();
  out.mask_count = p.masks.size();
  out.sample_count = p.uniforms.size();
  out.few_ids = p.few_ids.data();
  out.mask_index = p.mask_index.data();
  out.draws = p.draws.data();
  out.temperatures = p.temperatures.data();
  out.sampling = reinterpret_cast<const std::uint8_t *>(p.sampling.data());
  out.parents = reinterpret_cast<const double *>(p.parents.data());
  out.uniforms = p.uniforms.data();
  out.gumbel_uniforms = p.gumbel_uniforms.data();
  out.request_count = p.requests.size();
  out.requests = p.requests.data();
  out.prefix_count = p.prefixes_to_score.size();
  return out;
}

const Plan &open_plan(const toolprm_search &search, Side side) {
  const Plan *plan = search.open[static_cast<std::size_t>(side)];
  require(plan != nullptr, side == Side::kPolicy ? "the policy has no open plan: toolprm_search_plan() first"
                                                 : "the reward side has no open plan: toolprm_search_plan() first");
  return *plan;
}

bool known(const Search &search, std::int64_t id) {
  try {
    search.finished(id);
    return true;
  } catch (const std::out_of_range &) {
    return false;
  }
}

} // namespace

extern "C" {

uint32_t toolprm_abi_version(void) { return TOOLPRM_ABI_VERSION; }
uint32_t toolprm_abi_revision(void) { return TOOLPRM_ABI_REVISION; }
const char *toolprm_version(void) { return TOOLPRM_VERSION; }
const char *toolprm_last_error(void) {
  return lost_error ? "there is no memory to say what was wrong" : last_error.c_str();
}

// ---------------------------------------------------------------------------------------------- vocabulary, grammar

toolprm_status toolprm_vocabulary_create(const toolprm_bytes *tokens, size_t count, const int32_t *stop_ids,
                                         size_t stop_count, const toolprm_tokenizer *tokenizer,
                                         toolprm_vocabulary **vocabulary) {
  return make_handle(vocabulary, "vocabulary", [&] {
    const auto held = hold(tokenizer); // first: it is dropped where anything fails
    std::vector<std::string> texts;
    texts.reserve(array(tokens, count, "tokens").size());
    for (const toolprm_bytes &token : array(tokens, count, "tokens")) {
      const auto bytes = array(token.data, token.size, "the bytes of a token");
      texts.emplace_back(bytes.begin(), bytes.end());
    }
    const auto stops = array(stop_ids, stop_count, "stop_ids");
    return std::make_unique<toolprm_vocabulary>(toolprm_vocabulary{std::make_shared<const Vocabulary>(
        std::move(texts), std::vector<TokenId>(stops.begin(), stops.end()), read_tokenizer(held))});
  });
}

void toolprm_vocabulary_free(toolprm_vocabulary *vocabulary) { delete vocabulary; }

toolprm_status toolprm_grammar_deserialize(const void *data, size_t size, size_t max_instructions,
                                           toolprm_grammar **grammar) {
  return make_handle(grammar, "grammar", [&] {
    const auto bytes = array(static_cast<const std::byte *>(data), size, "data");
    return std::make_unique<toolprm_grammar>(
        toolprm_grammar{Grammar::deserialize(bytes, max_instructions ? max_instructions : kMaxInstructions)});
  });
}

void toolprm_grammar_free(toolprm_grammar *grammar) { delete grammar; }

// ---------------------------------------------------------------------------------------------- matcher

toolprm_status toolprm_matcher_create(const toolprm_grammar *grammar, const toolprm_vocabulary *vocabulary,
                                      toolprm_matcher **matcher) {
  return make_handle(matcher, "matcher", [&] {
    return std::make_unique<toolprm_matcher>(
        Matcher(given(grammar, "grammar").grammar, given(vocabulary, "vocabulary").vocabulary));
  });
}

void toolprm_matcher_free(toolprm_matcher *matcher) { delete matcher; }

toolprm_status toolprm_matcher_fork(const toolprm_matcher *matcher, toolprm_matcher **fork) {
  return make_handle(fork, "fork",
                     [&] { return std::make_unique<toolprm_matcher>(given(matcher, "matcher").matcher); });
}

toolprm_status toolprm_matcher_accept(toolprm_matcher *matcher, int32_t token, const toolprm_step **steps,
                                      size_t *count) {
  return guarded([&] {
    toolprm_matcher &m = given(matcher, "matcher");
    std::vector<Step> completed;
    if (!m.matcher.accept(token, &completed))
      throw Failure(TOOLPRM_ILLEGAL_TOKEN, "token " + std::to_string(token) + " is not legal here");
    m.steps = std::move(completed);
    m.step_views = views<toolprm_step>(m.steps);
    give(m.step_views, steps, count);
  });
}

toolprm_status toolprm_matcher_rollback(toolprm_matcher *matcher, size_t tokens) {
  return guarded([&] {
    Matcher &m = given(matcher, "matcher").matcher;
    require(tokens <= m.token_count(),
            "there are " + std::to_string(m.token_count()) + " tokens to take back, not " + std::to_string(tokens));
    m.rollback(tokens);
  });
}

toolprm_status toolprm_matcher_fill_mask(const toolprm_matcher *matcher, int32_t *row, size_t words) {
  return toolprm_fill_masks(&matcher, 1, row, words, 1);
}

toolprm_status toolprm_fill_masks(const toolprm_matcher *const *matchers, size_t count, int32_t *rows, size_t words,
                                  size_t threads) {
  return guarded([&] {
    std::vector<const Matcher *> all;
    for (const toolprm_matcher *matcher : array(matchers, count, "matchers")) {
      all.push_back(&given(matcher, "matcher").matcher);
      const std::size_t least = all.back()->vocabulary().words();
      require(words >= least,
              "a row needs " + std::to_string(least) + " words or more, and has " + std::to_string(words));
    }
    array(rows, count, "rows");
    require(count == 0 || words <= SIZE_MAX / sizeof(*rows) / count, "rows of so many words cannot be");
    fill_masks(all, {rows, count * words}, std::max<std::size_t>(threads, 1));
  });
}

toolprm_status toolprm_matcher_forced(toolprm_matcher *matcher, const int32_t **tokens, size_t *count) {
  return guarded([&] {
    toolprm_matcher &m = given(matcher, "matcher");
    m.forced = m.matcher.forced();
    give(m.forced, tokens, count);
  });
}

toolprm_status toolprm_matcher_is_complete(const toolprm_matcher *matcher, int32_t *complete) {
  return guarded([&] { given(complete, "complete") = given(matcher, "matcher").matcher.is_complete() ? 1 : 0; });
}

toolprm_status toolprm_matcher_is_stopped(const toolprm_matcher *matcher, int32_t *stopped) {
  return guarded([&] { given(stopped, "stopped") = given(matcher, "matcher").matcher.is_stopped() ? 1 : 0; });
}

toolprm_status toolprm_matcher_text(toolprm_matcher *matcher, toolprm_bytes *text) {
  return guarded([&] {
    toolprm_matcher &m = given(matcher, "matcher");
    m.text = m.matcher.text();
    given(text, "text") = view(m.text);
  });
}

// ---------------------------------------------------------------------------------------------- search

toolprm_status toolprm_reward_format_create(const toolprm_tokenizer *tokenizer, const toolprm_ids *tags,
                                            toolprm_reward_format **format) {
  return make_handle(format, "format", [&] {
    const auto held = hold(tokenizer);
    given(tokenizer, "tokenizer");
    auto made = std::make_shared<RewardFormat>();
    made->tokenize = read_tokenizer(held);
    given(tags, "tags");
    for (std::size_t kind = 0; kind < made->tags.size(); ++kind)
      made->tags[kind] = read_ids(tags[kind], "a tag");
    return std::make_unique<toolprm_reward_format>(toolprm_reward_format{std::move(made)});
  });
}

void toolprm_reward_format_free(toolprm_reward_format *format) { delete format; }

toolprm_status toolprm_search_config_init(toolprm_search_config *config, size_t size) {
  return init_struct(config, size, default_config());
}

toolprm_status toolprm_request_init(toolprm_request *request, size_t size) {
  return init_struct(request, size, default_request());
}

toolprm_status toolprm_search_create(const toolprm_search_config *config, toolprm_search **search) {
  return make_handle(search, "search", [&] {
    toolprm_search_config c = default_config();
    if (config)
      c = read_struct(*config, c, sizeof c);
    const auto pool = [](const toolprm_pool_options &o) { return PoolOptions{o.block_size, o.capacity, o.idle}; };
    return std::make_unique<toolprm_search>(
        SearchConfig{pool(c.policy), pool(c.reward), c.prompt_tokens, c.most_requests, c.most_rows});
  });
}

void toolprm_search_free(toolprm_search *search) { delete search; }

toolprm_status toolprm_search_add(toolprm_search *search, const toolprm_request *request, int64_t *id) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    given(id, "id");
    *id = s.search.add(read_request(given(request, "request")));
  });
}

toolprm_status toolprm_search_cancel(toolprm_search *search, int64_t id) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    s.search.cancel(id);
    s.failures.erase(id);
  });
}

toolprm_status toolprm_search_ended(toolprm_search *search, const int64_t **ids, size_t *count) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    s.ended = s.search.ended();
    for (const auto &[id, reason] : s.failures)
      s.ended.push_back(id);
    std::sort(s.ended.begin(), s.ended.end());
    give(s.ended, ids, count);
  });
}

toolprm_status toolprm_search_load(const toolprm_search *search, size_t *waiting, size_t *under_way) {
  return guarded([&] {
    const Search &s = given(search, "search").search;
    given(waiting, "waiting") = s.waiting();
    given(under_way, "under_way") = s.under_way();
  });
}

toolprm_status toolprm_search_take(toolprm_search *search, int64_t id, toolprm_result **result) {
  return make_handle(result, "result", [&] {
    toolprm_search &s = given(search, "search");
    if (const auto failure = s.failures.extract(id); !failure.empty())
      throw Failure(TOOLPRM_BAD_LOGITS, failure.mapped());
    auto out = std::make_unique<toolprm_result>(toolprm_result{s.search.take(id), {}, {}});
    for (const Answer &answer : out->result.answers)
      out->answer_steps.push_back(views<toolprm_scored_step>(answer.steps));
    for (const TreeNode &node : out->result.tree)
      out->node_steps.push_back(views<toolprm_scored_step>(node.steps));
    return out;
  });
}

toolprm_status toolprm_search_certain(toolprm_search *search, int64_t id, size_t from,
                                      const toolprm_scored_step **steps, size_t *count) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    s.certain = s.search.certain(id, from);
    s.certain_views = views<toolprm_scored_step>(s.certain);
    give(s.certain_views, steps, count);
  });
}

toolprm_status toolprm_search_plan(toolprm_search *search, int32_t side, toolprm_plan *plan) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    write_struct(given(plan, "plan"), toolprm_plan{},
                 sizeof(toolprm_plan)); // so that nothing is planned for a wrong one
    require(side == TOOLPRM_ANY_SIDE || side == TOOLPRM_POLICY || side == TOOLPRM_REWARD,
            "side must be TOOLPRM_POLICY, TOOLPRM_REWARD or TOOLPRM_ANY_SIDE, not " + std::to_string(side));
    const Plan &made = side == TOOLPRM_ANY_SIDE ? s.search.plan() : s.search.plan(static_cast<Side>(side));
    if (made.kind != PlanKind::kDone)
      s.open[made.kind == PlanKind::kDecode ? TOOLPRM_POLICY : TOOLPRM_REWARD] = &made;
    write_struct(*plan, view(made), sizeof(toolprm_plan));
  });
}

toolprm_status toolprm_search_plan_masks(const toolprm_search *search, int32_t *rows, size_t words) {
  return guarded([&] {
    const Plan &plan = open_plan(given(search, "search"), Side::kPolicy);
    for (const auto &mask : plan.masks) {
      const std::size_t bits = mask->words ? mask->words->size() : 0,
                        ids = mask->few.empty() ? 0 : static_cast<std::size_t>(mask->few.back()) / 32 + 1;
      require(words >= std::max(bits, ids), "a row needs " + std::to_string(std::max(bits, ids)) +
                                                " words or more, and has " + std::to_string(words));
    }
    array(rows, plan.masks.size(), "rows");
    for (const auto &mask : plan.masks) {
      mask->write({rows, words});
      rows += words;
    }
  });
}

toolprm_status toolprm_search_prefix(toolprm_search *search, size_t prefix, const toolprm_step **steps, size_t *count) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    const Plan &plan = open_plan(s, Side::kReward);
    require(prefix < plan.prefixes_to_score.size(), "the plan has " + std::to_string(plan.prefixes_to_score.size()) +
                                                        " prefixes to score, not one at " + std::to_string(prefix));
    s.prefix_views = views<toolprm_step>(plan.prefixes_to_score[prefix]);
    give(s.prefix_views, steps, count);
  });
}

toolprm_status toolprm_search_draw(toolprm_search *search, const float *logits, size_t width, const float *few_logits,
                                   int32_t *tokens, double *logprobs, double *perturbed) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    const Plan &plan = open_plan(s, Side::kPolicy);
    const auto full = static_cast<std::size_t>(plan.full_outputs);
    require(full == 0 || width <= SIZE_MAX / sizeof(*logits) / full, "logits of such a width cannot be");
    const auto values = array(logits, full * width, "logits");
    const auto few = array(few_logits, (plan.outputs.size() - full) * plan.few_ids.size(), "few_logits");
    const std::size_t samples = plan.uniforms.size();
    array(tokens, samples, "tokens");
    array(logprobs, samples, "logprobs");
    array(perturbed, samples, "perturbed");
    const Draws drawn = draw(plan, values, few);
    for (const auto &[id, reason] : drawn.failures)
      if (known(s.search, id)) {
        s.failures.emplace(id, reason);
        s.search.cancel(id);
      }
    std::copy(drawn.tokens.begin(), drawn.tokens.end(), tokens);
    std::copy(drawn.logprobs.begin(), drawn.logprobs.end(), logprobs);
    for (const Perturbed &place : drawn.perturbed) {
      *perturbed++ = place.logprob;
      *perturbed++ = place.gumbel;
    }
  });
}

toolprm_status toolprm_search_commit_tokens(toolprm_search *search, const int32_t *tokens, const double *logprobs,
                                            const double *perturbed, size_t count) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    std::vector<Perturbed> places(perturbed ? count : 0);
    for (std::size_t i = 0; i < places.size(); ++i)
      places[i] = {perturbed[2 * i], perturbed[2 * i + 1]};
    s.search.commit_tokens(array(tokens, count, "tokens"), array(logprobs, count, "logprobs"), places);
    s.open[TOOLPRM_POLICY] = nullptr;
  });
}

toolprm_status toolprm_search_commit_scores(toolprm_search *search, const double *scores, size_t count) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    s.search.commit_scores(array(scores, count, "scores"));
    s.open[TOOLPRM_REWARD] = nullptr;
  });
}

toolprm_status toolprm_search_fail(toolprm_search *search, int32_t side, const char *reason) {
  return guarded([&] {
    toolprm_search &s = given(search, "search");
    require(side == TOOLPRM_POLICY || side == TOOLPRM_REWARD,
            "side must be TOOLPRM_POLICY or TOOLPRM_REWARD, not " + std::to_string(side));
    s.search.fail(static_cast<Side>(side),
                  std::make_exception_ptr(Failure(TOOLPRM_PASS_FAILED, reason ? reason : "the pass failed")));
    s.open[static_cast<std::size_t>(side)] = nullptr;
  });
}

toolprm_status toolprm_search_clear_cache(toolprm_search *search) {
  return guarded([&] { given(search, "search").search.clear_cache(); });
}

// ---------------------------------------------------------------------------------------------- results

void toolprm_result_free(toolprm_result *result) { delete result; }

toolprm_status toolprm_result_size(const toolprm_result *result, size_t *answers, size_t *nodes) {
  return guarded([&] {
    const Result &r = given(result, "result").result;
    given(answers, "answers") = r.answers.size();
    given(nodes, "nodes") = r.tree.size();
  });
}

toolprm_status toolprm_result_answer(const toolprm_result *result, size_t index, toolprm_answer *answer) {
  return guarded([&] {
    const toolprm_result &r = given(result, "result");
    require(index < r.result.answers.size(),
            "there are " + std::to_string(r.result.answers.size()) + " answers, not one at " + std::to_string(index));
    const Answer &a = r.result.answers[index];
    const std::vector<toolprm_scored_step> &steps = r.answer_steps[index];
    write_struct(given(answer, "answer"),
                 toolprm_answer{0,
                                view(a.text),
                                {a.tokens.data(), a.tokens.size()},
                                steps.data(),
                                steps.size(),
                                a.rank,
                                a.score,
                                a.logprob,
                                a.multiplicity,
                                a.closed ? 1 : 0,
                                a.node},
                 sizeof(toolprm_answer));
  });
}

toolprm_status toolprm_result_node(const toolprm_result *result, size_t index, toolprm_node *node) {
  return guarded([&] {
    const toolprm_result &r = given(result, "result");
    require(index < r.result.tree.size(),
            "there are " + std::to_string(r.result.tree.size()) + " nodes, not one at " + std::to_string(index));
    const TreeNode &n = r.result.tree[index];
    const std::vector<toolprm_scored_step> &steps = r.node_steps[index];
    write_struct(given(node, "node"),
                 toolprm_node{0, n.parent, n.multiplicity, n.kept ? 1 : 0, n.finished ? 1 : 0, n.closed ? 1 : 0, n.rank,
                              steps.data(), steps.size()},
                 sizeof(toolprm_node));
  });
}

toolprm_status toolprm_result_stats(const toolprm_result *result, toolprm_stats *stats) {
  return guarded([&] {
    const SearchStats &s = given(result, "result").result.stats;
    write_struct(given(stats, "stats"),
                 toolprm_stats{0, s.policy_tokens, s.reward_tokens, s.cached_tokens, s.reward_cached_tokens,
                               s.forced_tokens, s.candidates, s.distinct_candidates, s.masks, s.rounds,
                               s.forward_passes, s.preemptions},
                 sizeof(toolprm_stats));
  });
}

} // extern "C"
