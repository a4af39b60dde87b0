// The only file that knows Python: toolprm_decode._core.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <limits>

#include "automaton.h"
#include "string_set.h"
#include "toolprm/draw.h"
#include "toolprm/grammar.h"
#include "toolprm/matcher.h"
#include "toolprm/sampler.h"
#include "toolprm/search.h"
#include "toolprm/vocabulary.h"

namespace py = pybind11;
using namespace toolprm;

namespace {

// Bytes of a text to str; bytes that are not UTF-8 become surrogate escapes.
py::str decode_utf8(const std::string &bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<py::ssize_t>(bytes.size()), "surrogateescape"));
}

// A Python callable that C++ may call and drop from threads that do not hold the interpreter.
Tokenize wrap_tokenize(const py::object &callable) {
  if (callable.is_none())
    return {};
  auto held = std::shared_ptr<py::object>(new py::object(callable), [](py::object *object) {
    py::gil_scoped_acquire gil;
    delete object;
  });
  return [held](std::string_view bytes) {
    py::gil_scoped_acquire gil;
    return (*held)(py::bytes(bytes.data(), bytes.size())).cast<std::vector<TokenId>>();
  };
}

template <class T> py::array_t<T> to_array(const std::vector<T> &values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// What a caller has of numbers, as numpy: an array, what has __array__ (tensors of torch on the CPU, lists), or what
// speaks DLPack alone. Nothing is copied that need not be.
py::array to_numpy(const py::object &values) {
  const bool speaks = py::hasattr(values, "__dlpack__") && !py::hasattr(values, "__array__");
  return py::module_::import("numpy").attr(speaks ? "from_dlpack" : "asarray")(values);
}

// Rows of a mask: int32, contiguous, writeable, one dimension or two. Returns their width in words.
std::size_t check_rows(const py::array &rows, py::ssize_t dimensions, const Vocabulary &vocabulary) {
  static PyObject *const int32 = py::dtype::of<std::int32_t>().release().ptr();
  const bool fits = rows.ndim() == dimensions && (rows.flags() & py::array::c_style) != 0 && rows.writeable() &&
                    (rows.dtype().ptr() == int32 || rows.dtype().equal(py::handle(int32)));
  const std::size_t width = fits ? static_cast<std::size_t>(rows.shape(dimensions - 1)) : 0;
  if (!fits || width < vocabulary.words())
    throw py::value_error(
        std::string(dimensions == 1 ? "the mask row must be one-dimensional" : "mask rows must be two-dimensional") +
        ", int32, contiguous and writeable, with at least " + std::to_string(vocabulary.words()) + " words");
  return width;
}

// Steps as the package gives them out.
py::list public_steps(const std::vector<Step> &steps) {
  py::list out;
  if (steps.empty())
    return out;
  static PyObject *const type =
      py::module_::import("toolprm_decode.grammar.call_grammar").attr("Step").cast<py::object>().release().ptr();
  for (const Step &s : steps)
    out.append(py::handle(type)(step_kind_name(s.kind), decode_utf8(s.text), s.start, s.end, decode_utf8(s.path)));
  return out;
}

// The two methods that search stacks call for every row, past pybind11's dispatch, which costs more than they do: a
// fork takes 0.12 instead of 0.23 us, a mask that is known 0.4 instead of 0.5.
const Matcher &matcher_of(PyObject *self) {
  return *static_cast<const Matcher *>(
      reinterpret_cast<py::detail::instance *>(self)->get_value_and_holder().value_ptr());
}

template <class Work> PyObject *quick(Work work) noexcept {
  try {
    return work();
  } catch (py::error_already_set &error) {
    error.restore();
  } catch (...) {
    py::detail::try_translate_exceptions();
  }
  return nullptr;
}

PyObject *quick_fork(PyObject *self, PyObject *) noexcept {
  return quick([&] {
    auto fork = std::make_unique<Matcher>(matcher_of(self));
    PyObject *made = py::detail::make_new_instance(Py_TYPE(self));
    auto place = reinterpret_cast<py::detail::instance *>(made)->get_value_and_holder();
    place.value_ptr() = fork.get();
    new (std::addressof(place.holder<std::unique_ptr<Matcher>>())) std::unique_ptr<Matcher>(std::move(fork));
    place.set_holder_constructed();
    return made;
  });
}

PyObject *quick_fill_mask(PyObject *self, PyObject *argument) noexcept {
  return quick([&] {
    if (!py::isinstance<py::array>(argument))
      throw py::type_error("the mask row must be a numpy array, int32");
    const auto row = py::reinterpret_borrow<py::array>(argument);
    const Matcher &matcher = matcher_of(self);
    const std::size_t size = check_rows(row, 1, matcher.vocabulary());
    matcher.fill_mask({static_cast<std::int32_t *>(const_cast<void *>(row.data())), size});
    Py_RETURN_NONE;
  });
}

void add_quick_methods(py::class_<Matcher> &type) {
  static std::array<PyMethodDef, 2> methods{
      {{"fork", quick_fork, METH_NOARGS, "fork($self, /)\n--\n\nAn independent copy, at the cost of a pointer."},
       {"fill_mask", quick_fill_mask, METH_O,
        "fill_mask($self, row, /)\n--\n\n"
        "Writes the legal tokens into `row`, int32 [>= ceil(vocabulary / 32)], bit = legal; further words are 0."}}};
  for (PyMethodDef &method : methods)
    type.attr(method.ml_name) =
        py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject *>(type.ptr()), &method));
}

void bind_grammar(py::module_ &m) {
  py::register_exception<BudgetError>(m, "BudgetError",
                                      py::module_::import("toolprm_decode.errors").attr("BudgetExceeded"));
  py::register_exception<ImpossibleGrammar>(m, "ImpossibleGrammar", PyExc_ValueError);

  py::class_<Dfa, std::shared_ptr<Dfa>>(m, "Dfa", "A byte automaton of a scalar: int32 [states, 256], bool [states].")
      .def(py::init([](const py::array_t<std::int32_t, py::array::c_style | py::array::forcecast> &transitions,
                       const py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast> &accepting) {
             return std::make_shared<Dfa>(
                 std::span<const std::int32_t>(transitions.data(), static_cast<std::size_t>(transitions.size())),
                 std::span<const std::uint8_t>(accepting.data(), static_cast<std::size_t>(accepting.size())));
           }),
           py::arg("transitions"), py::arg("accepting"))
      .def_property_readonly("states", &Dfa::states);
  const auto to_strings = [](const std::vector<py::bytes> &given) {
    return std::vector<std::string>(given.begin(), given.end());
  };
  m.def(
      "strings_dfa",
      [to_strings](const std::vector<py::bytes> &strings, std::size_t most_nodes) {
        const Table table = strings_table(to_strings(strings), most_nodes);
        return std::make_shared<Dfa>(table.transitions, table.accepting);
      },
      py::arg("strings"), py::arg("most_nodes"), "The smallest automaton of exactly these byte strings, one at least.");
  m.def(
      "strings_table",
      [to_strings](const std::vector<py::bytes> &strings, std::size_t most_nodes) {
        const Table table = strings_table(to_strings(strings), most_nodes);
        const auto states = static_cast<py::ssize_t>(table.accepting.size());
        py::array_t<bool> accepting(states);
        std::copy(table.accepting.begin(), table.accepting.end(), accepting.mutable_data());
        return std::make_pair(to_array(table.transitions).reshape({states, py::ssize_t{256}}), accepting);
      },
      py::arg("strings"), py::arg("most_nodes"), "The same as a table: int32 [states, 256], bool [states].");

  py::class_<Vocabulary, std::shared_ptr<Vocabulary>>(m, "Vocabulary")
      .def(
          py::init([](const std::vector<py::bytes> &tokens, std::vector<TokenId> stop_ids, const py::object &tokenize) {
            std::vector<std::string> bytes;
            bytes.reserve(tokens.size());
            for (const py::bytes &token : tokens)
              bytes.emplace_back(std::string_view(token));
            return std::make_shared<Vocabulary>(std::move(bytes), std::move(stop_ids), wrap_tokenize(tokenize));
          }),
          py::arg("tokens"), py::arg("stop_ids"), py::arg("tokenize") = py::none())
      .def("__len__", &Vocabulary::size)
      .def("prepare", [](const Vocabulary &v, const std::shared_ptr<Dfa> &dfa) { v.prepare(dfa); })
      .def_property_readonly("words", &Vocabulary::words)
      .def_property_readonly("stop_ids", &Vocabulary::stop_ids)
      .def("token",
           [](const Vocabulary &v, TokenId id) {
             if (!v.contains(id))
               throw py::index_error("token id " + std::to_string(id));
             return py::bytes(v.token(id));
           })
      .def("tokenize", [](const Vocabulary &v, const py::bytes &bytes) {
        std::string text = bytes;
        py::gil_scoped_release release;
        return v.tokenize(text);
      });

  py::class_<Grammar, std::shared_ptr<Grammar>>(m, "Grammar")
      .def("serialize",
           [](const Grammar &g) {
             const std::vector<std::byte> bytes = g.serialize();
             return py::bytes(reinterpret_cast<const char *>(bytes.data()), bytes.size());
           })
      .def_static(
          "deserialize",
          [](const py::bytes &data, std::size_t max_instructions) {
            const std::string_view bytes(data);
            py::gil_scoped_release release;
            return std::const_pointer_cast<Grammar>(
                Grammar::deserialize(std::as_bytes(std::span(bytes)), max_instructions));
          },
          py::arg("data"), py::arg("max_instructions") = kMaxInstructions)
      .def_property_readonly("instructions", &Grammar::instructions)
      .def_property_readonly("shortest", &Grammar::shortest);

  py::enum_<StepKind>(m, "StepKind")
      .value("FUNC_NAME", StepKind::kFuncName)
      .value("ARG_VALUE", StepKind::kArgValue)
      .value("PARAM_FINISH", StepKind::kParamFinish)
      .value("FUNC_FINISH", StepKind::kFuncFinish)
      .value("TOTAL_FINISH", StepKind::kTotalFinish);

  using DfaPtr = std::shared_ptr<Dfa>;
  py::class_<GrammarBuilder>(m, "GrammarBuilder")
      .def(py::init<std::size_t>(), py::arg("max_instructions") = kMaxInstructions)
      .def("literal", [](GrammarBuilder &b, const py::bytes &bytes) { return b.literal(bytes); })
      .def("scalar", [](GrammarBuilder &b, const DfaPtr &dfa) { return b.scalar(dfa); })
      .def("repeat", [](GrammarBuilder &b, const DfaPtr &unit, std::uint32_t min,
                        std::optional<std::uint32_t> max) { return b.repeat(unit, min, max.value_or(kUnbounded)); })
      .def("sequence", &GrammarBuilder::sequence)
      .def("choice", &GrammarBuilder::choice)
      .def("names",
           [](GrammarBuilder &b, const std::vector<std::pair<py::bytes, NodeId>> &entries) {
             std::vector<std::pair<std::string, NodeId>> names;
             for (const auto &[text, node] : entries)
               names.emplace_back(std::string(std::string_view(text)), node);
             return b.names(std::move(names));
           })
      .def(
          "object",
          [](GrammarBuilder &b, NodeId open, NodeId separator, NodeId close,
             const std::vector<std::tuple<std::vector<py::bytes>, NodeId, bool>> &properties, const DfaPtr &other_key,
             NodeId other_value, std::uint32_t min, std::optional<std::uint32_t> max, bool arguments,
             std::vector<NodeId> other_values, std::vector<std::int32_t> other_kinds) {
            GrammarBuilder::Object object{open,
                                          separator,
                                          close,
                                          {},
                                          other_key,
                                          other_value,
                                          min,
                                          max.value_or(kUnbounded),
                                          arguments,
                                          std::move(other_values),
                                          std::move(other_kinds)};
            for (const auto &[spellings, value, required] : properties) {
              GrammarBuilder::Property property{{}, value, required};
              for (const py::bytes &spelling : spellings)
                property.spellings.emplace_back(std::string_view(spelling));
              object.properties.push_back(std::move(property));
            }
            return b.object(std::move(object));
          },
          py::arg("open"), py::arg("separator"), py::arg("close"), py::arg("properties"),
          py::arg("other_key") = nullptr, py::arg("other_value") = -1, py::arg("min") = 0, py::arg("max") = py::none(),
          py::arg("arguments") = false, py::arg("other_values") = std::vector<NodeId>{},
          py::arg("other_kinds") = std::vector<std::int32_t>{})
      .def(
          "array",
          [](GrammarBuilder &b, NodeId open, NodeId separator, NodeId close, std::vector<NodeId> prefix, NodeId item,
             std::uint32_t min, std::optional<std::uint32_t> max) {
            return b.array({open, separator, close, std::move(prefix), item, min, max.value_or(kUnbounded)});
          },
          py::arg("open"), py::arg("separator"), py::arg("close"), py::arg("prefix"), py::arg("item") = -1,
          py::arg("min") = 0, py::arg("max") = py::none())
      .def("step", &GrammarBuilder::step, py::arg("kind"), py::arg("back") = 0)
      .def("space", &GrammarBuilder::space)
      .def("stop", &GrammarBuilder::stop)
      .def("declare_rule", &GrammarBuilder::declare_rule)
      .def("define_rule", &GrammarBuilder::define_rule)
      .def(
          "build", [](const GrammarBuilder &b, NodeId root, bool calls) { return b.build(root, calls); },
          py::arg("root"), py::arg("calls"), py::call_guard<py::gil_scoped_release>());

  py::class_<Step>(m, "Step")
      .def_property_readonly("kind", [](const Step &s) { return step_kind_name(s.kind); })
      .def_readonly("start", &Step::start)
      .def_readonly("end", &Step::end)
      .def_property_readonly("path", [](const Step &s) { return decode_utf8(s.path); })
      .def_property_readonly("text", [](const Step &s) { return decode_utf8(s.text); });

  using Steps = std::optional<std::vector<Step>>;
  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Matcher> matcher(m, "Matcher", R"(One answer on its way through a grammar: CallGrammar.matcher() makes it.

Fork and rollback cost a pointer. Not thread-safe itself; forks may be used from different threads. All that read ahead
raise BudgetExceeded where a schema's alternatives overlap so much that reading gets out of hand.)");
  add_quick_methods(matcher);
  // accept() takes less time than to let the interpreter go and have it back.
  matcher
      .def(py::init([](std::shared_ptr<Grammar> grammar, std::shared_ptr<Vocabulary> vocabulary) {
        return Matcher(std::move(grammar), std::move(vocabulary));
      }))
      .def(
          "accept",
          [](Matcher &self, TokenId token) {
            std::vector<Step> steps;
            if (!self.accept(token, &steps)) {
              const std::string text = self.text();
              throw py::value_error("token " + std::to_string(token) + " is not legal after " +
                                    std::string(py::str(py::repr(py::bytes(
                                        text.substr(text.size() - std::min<std::size_t>(text.size(), 40)))))));
            }
            return public_steps(steps);
          },
          py::arg("token_id"),
          "Reads a token; returns the steps it completed. An illegal one is a ValueError and changes nothing.")
      .def("forced", &Matcher::forced, released,
           "The tokens of the only text that can follow, in canonical tokenisation; [] where there is a choice.")
      .def("rollback", &Matcher::rollback, py::arg("tokens") = 1,
           "Takes the last tokens back. IndexError when there are fewer.")
      .def_property_readonly("is_complete", &Matcher::is_complete, "The answer may end here.")
      .def_property_readonly("is_stopped", &Matcher::is_stopped, "A stop token was read.")
      .def_property_readonly(
          "text",
          [](const Matcher &self) {
            const std::string text = self.text();
            return py::reinterpret_steal<py::str>(
                PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
          },
          "What was written so far; bytes of an unfinished character are replaced.")
      .def_property_readonly("tokens", &Matcher::tokens, "The tokens read so far.")
      .def_property_readonly(
          "steps", [](const Matcher &self) { return public_steps(self.steps()); }, "The steps completed so far.")
      // For the package itself.
      .def(
          "try_accept",
          [](Matcher &self, TokenId token) {
            std::vector<Step> steps;
            return self.accept(token, &steps) ? Steps(std::move(steps)) : std::nullopt;
          },
          "The steps that the token completed, or None where it is illegal (the state is then unchanged).", released)
      .def(
          "accept_bytes",
          [](Matcher &self, const std::string &bytes) {
            std::vector<Step> steps;
            return self.accept_bytes(bytes, &steps) ? Steps(std::move(steps)) : std::nullopt;
          },
          released)
      .def(
          "finish",
          [](Matcher &self) {
            std::vector<Step> steps;
            return self.finish(&steps) ? Steps(std::move(steps)) : std::nullopt;
          },
          released)
      .def_property_readonly(
          "mask_nodes", [](const Matcher &self) { return self.mask()->nodes; },
          "How many nodes of tries were visited to find the mask.")
      .def("plain_mask", [](const Matcher &self) { return to_array(self.plain_mask()); })
      .def("forced_bytes", [](const Matcher &self) { return py::bytes(self.forced_bytes()); })
      .def("closing", [](const Matcher &self) { return py::bytes(self.closing()); })
      .def_property_readonly("closing_bytes", &Matcher::closing_bytes)
      .def_property_readonly("text_bytes", [](const Matcher &self) { return py::bytes(self.text()); })
      .def_property_readonly("state_key",
                             [](const Matcher &self) { return reinterpret_cast<std::uintptr_t>(self.state()); });

  m.def(
      "fill_masks",
      [](const std::vector<const Matcher *> &matchers, const py::array &rows, std::size_t threads) {
        if (matchers.empty())
          return;
        std::size_t width = 0;
        for (const Matcher *matcher : matchers)
          width = check_rows(rows, 2, matcher->vocabulary());
        if (static_cast<std::size_t>(rows.shape(0)) < matchers.size())
          throw py::value_error("there are " + std::to_string(matchers.size()) + " matchers and " +
                                std::to_string(rows.shape(0)) + " rows");
        auto *first = static_cast<std::int32_t *>(const_cast<void *>(rows.data()));
        py::gil_scoped_release release;
        fill_masks(matchers, {first, width * matchers.size()}, threads);
      },
      py::arg("matchers"), py::arg("rows"), py::arg("threads"));

  m.def("canonical_value", [](const std::string &text) { return py::bytes(canonical_value(text)); });
}

template <class T, int flags> std::span<const T> to_span(const py::array_t<T, flags> &array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

using Tokens = py::array_t<TokenId, py::array::c_style | py::array::forcecast>;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

// Token ids of any integer type. One that int32 cannot hold is refused: cut off, it would be another token.
Tokens to_tokens(const py::object &values) {
  const py::array array = to_numpy(values);
  const char kind = array.dtype().kind();
  if (array.size() > 0 && kind != 'i' && kind != 'u')
    throw py::type_error("tokens must be whole numbers, not " + std::string(py::str(array.dtype())));
  if (array.dtype().itemsize() > static_cast<py::ssize_t>(sizeof(TokenId)) || kind == 'u') {
    const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
    for (const std::int64_t token : to_span(wide))
      if (token < -1 || token > std::numeric_limits<TokenId>::max())
        throw py::value_error("there is no token " + std::to_string(token));
  }
  return Tokens::ensure(array);
}

Doubles to_doubles(const py::object &values) {
  auto made = Doubles::ensure(to_numpy(values));
  if (!made)
    throw py::error_already_set();
  return made;
}

// Logits, which are too many to be converted along the way: float32, contiguous.
py::array_t<float, py::array::c_style> to_logits(const py::object &values, const char *name) {
  const py::array array = to_numpy(values);
  if (!py::isinstance<py::array_t<float, py::array::c_style>>(array))
    throw py::type_error(std::string(name) + " must be float32 and contiguous, on the CPU");
  return array;
}

// Why a pass could not be run is the caller's to know.
struct PassFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Draws the samples that a DECODE plan wants from logits: float32 [full outputs, at least the vocabulary] and
// [other outputs, few ids]. Requests whose logits cannot be drawn from are told, with the reason.
py::tuple sample_plan(const Plan &plan, const py::object &all_logits, const py::object &all_few_logits) {
  const auto logits = to_logits(all_logits, "logits"), few_logits = to_logits(all_few_logits, "few_logits");
  const auto full = static_cast<std::size_t>(plan.full_outputs);
  if (logits.ndim() != 2 || static_cast<std::size_t>(logits.shape(0)) != full)
    throw py::value_error("logits must be [" + std::to_string(full) + ", vocabulary]");
  if (few_logits.ndim() != 2 || static_cast<std::size_t>(few_logits.shape(0)) != plan.outputs.size() - full ||
      static_cast<std::size_t>(few_logits.shape(1)) != plan.few_ids.size())
    throw py::value_error("few_logits must be [" + std::to_string(plan.outputs.size() - full) + ", " +
                          std::to_string(plan.few_ids.size()) + "]");
  Draws drawn;
  {
    const auto values = to_span(logits), few_values = to_span(few_logits);
    py::gil_scoped_release release;
    drawn = draw(plan, values, few_values);
  }
  static_assert(sizeof(Perturbed) == 2 * sizeof(double));
  const py::array_t<double> perturbed({static_cast<py::ssize_t>(drawn.perturbed.size()), py::ssize_t{2}},
                                      reinterpret_cast<const double *>(drawn.perturbed.data()));
  return py::make_tuple(to_array(drawn.tokens), to_array(drawn.logprobs), perturbed, drawn.failures);
}

void bind_search(py::module_ &m) {
  py::enum_<Strategy>(m, "Strategy")
      .value("GREEDY", Strategy::kGreedy)
      .value("SAMPLE", Strategy::kSample)
      .value("STEP_BEAM", Strategy::kStepBeam)
      .value("TOKEN_BEAM", Strategy::kTokenBeam);
  py::enum_<Aggregate>(m, "Aggregate")
      .value("LAST", Aggregate::kLast)
      .value("MIN", Aggregate::kMin)
      .value("PRODUCT", Aggregate::kProduct)
      .value("MEAN", Aggregate::kMean);
  py::enum_<Scoring>(m, "Scoring")
      .value("NONE", Scoring::kNone)
      .value("MODEL", Scoring::kModel)
      .value("EXTERNAL", Scoring::kExternal);
  py::register_exception<OutOfBlocks>(m, "OutOfBlocks", PyExc_RuntimeError);
  py::register_exception<PassFailed>(m, "PassFailed", PyExc_RuntimeError);
  py::enum_<Side>(m, "Side").value("POLICY", Side::kPolicy).value("REWARD", Side::kReward);
  py::enum_<PlanKind>(m, "PlanKind")
      .value("DECODE", PlanKind::kDecode)
      .value("SCORE", PlanKind::kScore)
      .value("DONE", PlanKind::kDone);

  py::class_<SearchOptions>(m, "SearchOptions")
      .def(py::init<>())
      .def_readwrite("strategy", &SearchOptions::strategy)
      .def_readwrite("beams", &SearchOptions::beams)
      .def_readwrite("width", &SearchOptions::width)
      .def_readwrite("temperature", &SearchOptions::temperature)
      .def_readwrite("aggregate", &SearchOptions::aggregate)
      .def_readwrite("policy_weight", &SearchOptions::policy_weight)
      .def_readwrite("distinct", &SearchOptions::distinct)
      .def_readwrite("independent", &SearchOptions::independent)
      .def_readwrite("confidence", &SearchOptions::confidence)
      .def_readwrite("seed", &SearchOptions::seed)
      .def_readwrite("max_tokens", &SearchOptions::max_tokens)
      .def_readwrite("forced_runs", &SearchOptions::forced_runs);

  py::class_<RewardFormat, std::shared_ptr<RewardFormat>>(m, "RewardFormat")
      .def(py::init([](const py::object &tokenize, const std::array<std::vector<TokenId>, 5> &tags) {
             return std::make_shared<RewardFormat>(RewardFormat{wrap_tokenize(tokenize), tags});
           }),
           py::arg("tokenize"), py::arg("tags"), "tags: token ids of each kind's tag, in the order of StepKind.");

  py::class_<Plan>(m, "Plan")
      .def_readonly("kind", &Plan::kind)
      .def_property_readonly("tokens", [](const Plan &p) { return to_array(p.tokens); })
      .def_property_readonly("positions", [](const Plan &p) { return to_array(p.positions); })
      .def_property_readonly("rows", [](const Plan &p) { return to_array(p.rows); })
      .def_property_readonly("slots", [](const Plan &p) { return to_array(p.slots); })
      .def_property_readonly("segments",
                             [](const Plan &p) {
                               static_assert(sizeof(Segment) == 2 * sizeof(std::int32_t));
                               return py::array_t<std::int32_t>(
                                   {static_cast<py::ssize_t>(p.segments.size()), py::ssize_t{2}},
                                   reinterpret_cast<const std::int32_t *>(p.segments.data()));
                             })
      .def_property_readonly("contexts",
                             [](const Plan &p) {
                               return py::array_t<std::int32_t>({static_cast<py::ssize_t>(p.lengths.size()),
                                                                 static_cast<py::ssize_t>(p.context_width)},
                                                                p.contexts.data());
                             })
      .def_property_readonly("lengths", [](const Plan &p) { return to_array(p.lengths); })
      .def_property_readonly("block_tables",
                             [](const Plan &p) {
                               return py::array_t<std::int32_t>({static_cast<py::ssize_t>(p.lengths.size()),
                                                                 static_cast<py::ssize_t>(p.table_width)},
                                                                p.block_tables.data());
                             })
      .def_property_readonly("outputs", [](const Plan &p) { return to_array(p.outputs); })
      .def_property_readonly("copies",
                             [](const Plan &p) {
                               static_assert(sizeof(SlotCopy) == 3 * sizeof(std::int32_t));
                               return py::array_t<std::int32_t>(
                                   {static_cast<py::ssize_t>(p.copies.size()), py::ssize_t{3}},
                                   reinterpret_cast<const std::int32_t *>(p.copies.data()));
                             })
      .def_readonly("blocks", &Plan::blocks)
      .def_property_readonly(
          "masks",
          [](const Plan &p) {
            std::size_t words = 0;
            for (const auto &mask : p.masks)
              words = std::max({words, mask->words ? mask->words->size() : 0,
                                mask->few.empty() ? 0 : static_cast<std::size_t>(mask->few.back()) / 32 + 1});
            py::array_t<std::int32_t> out({static_cast<py::ssize_t>(p.masks.size()), static_cast<py::ssize_t>(words)});
            for (std::int32_t *row = out.mutable_data(); const auto &mask : p.masks) {
              mask->write({row, words});
              row += words;
            }
            return out;
          })
      .def_property_readonly("mask_index", [](const Plan &p) { return to_array(p.mask_index); })
      .def_property_readonly("draws", [](const Plan &p) { return to_array(p.draws); })
      .def_property_readonly("temperatures", [](const Plan &p) { return to_array(p.temperatures); })
      .def_property_readonly("uniforms", [](const Plan &p) { return to_array(p.uniforms); })
      .def_property_readonly("gumbel_uniforms", [](const Plan &p) { return to_array(p.gumbel_uniforms); })
      .def_property_readonly("sampling",
                             [](const Plan &p) {
                               const auto outputs = static_cast<py::ssize_t>(p.sampling.size());
                               py::array_t<std::uint8_t> array(outputs);
                               std::transform(p.sampling.begin(), p.sampling.end(), array.mutable_data(),
                                              [](Sampling s) { return static_cast<std::uint8_t>(s); });
                               return array;
                             })
      .def_property_readonly("parents",
                             [](const Plan &p) {
                               py::array_t<double> array({static_cast<py::ssize_t>(p.parents.size()), py::ssize_t{2}});
                               for (std::size_t i = 0; i < p.parents.size(); ++i) {
                                 array.mutable_at(i, 0) = p.parents[i].logprob;
                                 array.mutable_at(i, 1) = p.parents[i].gumbel;
                               }
                               return array;
                             })
      .def_readonly("full_outputs", &Plan::full_outputs)
      .def_property_readonly("few_ids", [](const Plan &p) { return to_array(p.few_ids); })
      .def_readonly("requests", &Plan::requests)
      .def_readonly("prefixes_to_score", &Plan::prefixes_to_score);

  py::class_<ScoredStep>(m, "ScoredStep")
      .def_readonly("step", &ScoredStep::step)
      .def_readonly("score", &ScoredStep::score)
      .def_readonly("logprob", &ScoredStep::logprob);
  py::class_<TreeNode>(m, "TreeNode")
      .def_readonly("parent", &TreeNode::parent)
      .def_readonly("steps", &TreeNode::steps)
      .def_readonly("rank", &TreeNode::rank)
      .def_readonly("multiplicity", &TreeNode::multiplicity)
      .def_readonly("kept", &TreeNode::kept)
      .def_readonly("finished", &TreeNode::finished)
      .def_readonly("closed", &TreeNode::closed);
  py::class_<Answer>(m, "Answer")
      .def_property_readonly("text", [](const Answer &a) { return py::bytes(a.text); })
      .def_readonly("tokens", &Answer::tokens)
      .def_readonly("steps", &Answer::steps)
      .def_readonly("rank", &Answer::rank)
      .def_readonly("score", &Answer::score)
      .def_readonly("logprob", &Answer::logprob)
      .def_readonly("multiplicity", &Answer::multiplicity)
      .def_readonly("closed", &Answer::closed)
      .def_readonly("node", &Answer::node);
  py::class_<SearchStats>(m, "SearchStats")
      .def_readonly("policy_tokens", &SearchStats::policy_tokens)
      .def_readonly("cached_tokens", &SearchStats::cached_tokens)
      .def_readonly("reward_cached_tokens", &SearchStats::reward_cached_tokens)
      .def_readonly("preemptions", &SearchStats::preemptions)
      .def_readonly("reward_tokens", &SearchStats::reward_tokens)
      .def_readonly("forced_tokens", &SearchStats::forced_tokens)
      .def_readonly("candidates", &SearchStats::candidates)
      .def_readonly("distinct_candidates", &SearchStats::distinct_candidates)
      .def_readonly("masks", &SearchStats::masks)
      .def_readonly("rounds", &SearchStats::rounds)
      .def_readonly("forward_passes", &SearchStats::forward_passes);
  py::class_<Result>(m, "Result")
      .def_readonly("answers", &Result::answers)
      .def_readonly("tree", &Result::tree)
      .def_readonly("stats", &Result::stats);

  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<PoolOptions>(m, "PoolOptions")
      .def(py::init([](std::int32_t block_size, std::int32_t capacity, std::int32_t idle) {
             return PoolOptions{block_size, capacity, idle};
           }),
           py::arg("block_size") = 16, py::arg("capacity") = 0, py::arg("idle") = -1)
      .def_readonly("block_size", &PoolOptions::block_size)
      .def_readonly("capacity", &PoolOptions::capacity)
      .def_readonly("idle", &PoolOptions::idle);
  py::class_<Search>(m, "Search")
      .def(py::init([](const PoolOptions &policy, const PoolOptions &reward, std::int32_t prompt_tokens,
                       std::int32_t most_requests, std::int32_t most_rows) {
             return std::make_unique<Search>(SearchConfig{policy, reward, prompt_tokens, most_requests, most_rows});
           }),
           py::arg("policy") = PoolOptions{}, py::arg("reward") = PoolOptions{}, py::arg("prompt_tokens") = 512,
           py::arg("most_requests") = 256, py::arg("most_rows") = 512)
      .def(
          "add",
          [](Search &self, const Matcher &matcher, const SearchOptions &options, std::vector<TokenId> prompt,
             Scoring scoring, std::vector<TokenId> reward_prompt, std::shared_ptr<RewardFormat> reward,
             std::int32_t reward_room) {
            py::gil_scoped_release release;
            return self.add(Request{matcher, options, scoring, std::move(prompt), std::move(reward_prompt),
                                    std::move(reward), reward_room});
          },
          py::arg("matcher"), py::arg("options"), py::arg("prompt"), py::arg("scoring") = Scoring::kNone,
          py::arg("reward_prompt") = std::vector<TokenId>{}, py::arg("reward") = nullptr, py::arg("reward_room") = 0)
      .def("cancel", &Search::cancel)
      .def("ended", &Search::ended)
      .def("finished", &Search::finished)
      .def("take", &Search::take)
      .def("certain", &Search::certain, py::arg("id"), py::arg("start"))
      .def_property_readonly("waiting", &Search::waiting)
      .def_property_readonly("under_way", &Search::under_way)
      .def(
          "plan",
          [](Search &self, std::optional<Side> side) -> const Plan & { return side ? self.plan(*side) : self.plan(); },
          py::arg("side") = std::nullopt, py::return_value_policy::reference_internal, released)
      .def(
          "commit_tokens",
          [](Search &self, const py::object &tokens, const py::object &logprobs, const py::object &perturbed) {
            const auto ids = to_tokens(tokens);
            const auto natural = to_doubles(logprobs);
            auto t = to_span(ids);
            auto l = to_span(natural);
            std::span<const Perturbed> p;
            std::optional<Doubles> places;
            if (!perturbed.is_none()) {
              places = to_doubles(perturbed);
              if (places->ndim() != 2 || places->shape(1) != 2)
                throw py::value_error("perturbed must be [samples, 2]");
              p = {reinterpret_cast<const Perturbed *>(places->data()), static_cast<std::size_t>(places->shape(0))};
            }
            py::gil_scoped_release release;
            self.commit_tokens(t, l, p);
          },
          py::arg("tokens"), py::arg("logprobs"), py::arg("perturbed") = py::none())
      .def("commit_scores",
           [](Search &self, const py::object &scores) {
             const auto judged = to_doubles(scores);
             auto s = to_span(judged);
             py::gil_scoped_release release;
             self.commit_scores(s);
           })
      .def(
          "fail",
          [](Search &self, Side side, const std::string &reason) {
            self.fail(side, std::make_exception_ptr(PassFailed(reason)));
          },
          py::arg("side"), py::arg("reason"), released)
      .def("clear_cache", &Search::clear_cache)
      .def_property_readonly("blocks_in_use",
                             [](const Search &s) {
                               return std::make_pair(s.pool(Side::kPolicy).in_use(), s.pool(Side::kReward).in_use());
                             })
      .def_property_readonly("idle_blocks", [](const Search &s) {
        return std::make_pair(s.idle_blocks(Side::kPolicy), s.idle_blocks(Side::kReward));
      });

  m.def("sample_plan", &sample_plan, py::arg("plan"), py::arg("logits"), py::arg("few_logits"),
        "The draws of a DECODE plan: int32 tokens, float64 log-probabilities and float64 [samples, 2] perturbed ones, "
        "one a sample, and what is wrong with the logits of a request, by its id.");
  m.def("uniform", &uniform, py::arg("seed"), py::arg("candidate"), py::arg("position"), py::arg("round"),
        py::arg("lane") = 0, "The uniform number in [0, 1) that a draw uses.");
}

} // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core: vocabulary, grammar, matcher, block pool, prefix cache and search.";
  bind_grammar(m);
  bind_search(m);
}
