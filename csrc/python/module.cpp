// edlm_engine._C: facts of the build, and the ops on arrays of any library for callers without
// torch (edlm_engine.arrays).
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <tuple>

#include "../cpu/row_pass.h"
#include "arrays.h"

namespace edlm::ring {
namespace {

// An int64 array as one of NumPy or CuPy, to be broadcast with others.
py::object words(const std::string& what, const py::object& object) {
  const AnyArray array = array_arg(what.c_str(), object);
  require<Arrays>(array.type == Type::kInt64, what, " must be int64 or an int, got ",
                  Arrays::describe(array));
  return Arrays::on_host(array) ? Arrays::numpy(array) : cupy().attr("from_dlpack")(object);
}

// What an op made, as the caller gets it.
py::object given(const AnyArray& made) { return made.owner; }
template <class... Made>
py::tuple given(const std::tuple<Made...>& made) {
  return std::apply([](const auto&... array) { return py::make_tuple(array.owner...); }, made);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu::row_pass().name;
#ifdef EDLM_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace
}  // namespace edlm::ring

PYBIND11_MODULE(_C, m) {
  using namespace pybind11::literals;
  using namespace edlm::ring;
  using py::object;
  m.doc() =
      "Facts of the build, and the ops on arrays of any library (edlm_engine.arrays has their "
      "documentation).";
  m.def("build_info", &build_info);
  m.def("words", &words, "what"_a, "array"_a);
  m.def(
      "stream_keys",
      [](const object& seeds, const object& coordinates) {
        const AnyArray first = array_arg("seeds", seeds);
        return given(stream_keys(Arrays{}, first, array_arg("coordinates", coordinates, &first)));
      },
      "seeds"_a, "coordinates"_a);
  m.def(
      "sample_candidates",
      [](const object& logits, const object& keys, int64_t num_candidates, int64_t forbidden_id,
         double temperature, double top_p, int64_t top_k, double min_p, bool statistics,
         int64_t threads) {
        const AnyArray first = array_arg("logits", logits);
        const auto run = [&](auto op) {
          return given(op(Arrays{threads}, first, array_arg("keys", keys, &first), num_candidates,
                          forbidden_id, temperature, top_p, top_k, min_p));
        };
        return statistics ? run(sample_candidates_statistics<Arrays>)
                          : run(sample_candidates<Arrays>);
      },
      "logits"_a, "keys"_a, "num_candidates"_a, py::kw_only(), "forbidden_id"_a = -1,
      "temperature"_a = 1.0, "top_p"_a = 1.0, "top_k"_a = 0, "min_p"_a = 0.0,
      "statistics"_a = false, "threads"_a = 1);
  m.def(
      "sample_weights",
      [](const object& weights, const object& keys, int64_t num_candidates, int64_t threads) {
        const AnyArray first = array_arg("weights", weights);
        return given(sample_weights(Arrays{threads}, first, array_arg("keys", keys, &first),
                                    num_candidates));
      },
      "weights"_a, "keys"_a, "num_candidates"_a, py::kw_only(), "threads"_a = 1);
  m.def(
      "token_log_probs",
      [](const object& logits, const object& targets, int64_t forbidden_id, double temperature,
         int64_t threads) {
        const AnyArray first = array_arg("logits", logits);
        return given(token_log_probs(Arrays{threads}, first, array_arg("targets", targets, &first),
                                     forbidden_id, temperature));
      },
      "logits"_a, "targets"_a, py::kw_only(), "forbidden_id"_a = -1, "temperature"_a = 1.0,
      "threads"_a = 1);
  m.def(
      "resample",
      [](const object& log_weights, const object& keys) {
        const AnyArray first = array_arg("log_weights", log_weights);
        return given(resample(Arrays{}, first, array_arg("keys", keys, &first)));
      },
      "log_weights"_a, "keys"_a);
  m.def(
      "place_candidates",
      [](const object& tokens, const object& log_q, const object& places, const object& starts,
         const object& rows, int64_t first_position, const object& x0, const object& canvas,
         const object& failed) {
        const AnyArray first = array_arg("tokens", tokens);
        return given(place_candidates(
            Arrays{}, first, array_arg("log_q", log_q, &first), array_arg("places", places, &first),
            array_arg("starts", starts, &first), array_arg("rows", rows, &first), first_position,
            written_arg("x0", x0, first), written_arg("canvas", canvas, first),
            written_arg("failed", failed, first)));
      },
      "tokens"_a, "log_q"_a, "places"_a, "starts"_a, "rows"_a, "first_position"_a, "x0"_a,
      "canvas"_a, "failed"_a);
  m.def(
      "reveal_chosen",
      [](const object& energy, double temperature, const object& keys, const object& x0,
         const object& places, const object& starts, const object& rows, const object& columns,
         const object& canvas, const object& ess, const object& log_z, const object& failed) {
        const AnyArray first = array_arg("x0", x0);
        return given(reveal_chosen(
            Arrays{}, array_arg("energy", energy, &first), temperature,
            array_arg("keys", keys, &first), first, array_arg("places", places, &first),
            array_arg("starts", starts, &first), array_arg("rows", rows, &first),
            array_arg("columns", columns, &first), written_arg("canvas", canvas, first),
            written_arg("ess", ess, first), written_arg("log_z", log_z, first),
            written_arg("failed", failed, first)));
      },
      "energy"_a, "temperature"_a, "keys"_a, "x0"_a, "places"_a, "starts"_a, "rows"_a, "columns"_a,
      "canvas"_a, "ess"_a, "log_z"_a, "failed"_a);
  m.def(
      "sum_log_probs",
      [](const object& log_probs, int64_t sequences, const object& starts) {
        const AnyArray first = array_arg("log_probs", log_probs);
        std::optional<AnyArray> cuts;
        if (!starts.is_none()) cuts = array_arg("starts", starts, &first);
        return given(sum_log_probs(Arrays{}, first, sequences, cuts));
      },
      "log_probs"_a, "sequences"_a, "starts"_a = py::none());
  m.def(
      "residual_draw",
      [](const object& logits_p, const object& logits_q, const object& draft, const object& keys,
         int64_t forbidden_p, int64_t forbidden_q, double temperature_p, double temperature_q,
         int64_t threads) {
        const AnyArray first = array_arg("logits_p", logits_p);
        return given(residual_draw(Arrays{threads}, first, array_arg("logits_q", logits_q, &first),
                                   array_arg("draft", draft, &first),
                                   array_arg("keys", keys, &first), forbidden_p, forbidden_q,
                                   temperature_p, temperature_q));
      },
      "logits_p"_a, "logits_q"_a, "draft"_a, "keys"_a, py::kw_only(), "forbidden_p"_a = -1,
      "forbidden_q"_a = -1, "temperature_p"_a = 1.0, "temperature_q"_a = 1.0, "threads"_a = 1);
  m.def(
      "reveal_steps",
      [](const object& keys, int64_t length, const object& mask_probs) {
        const AnyArray first = array_arg("keys", keys);
        return given(
            reveal_steps(Arrays{}, first, length, array_arg("mask_probs", mask_probs, &first)));
      },
      "keys"_a, "length"_a, "mask_probs"_a);
}
