// The ops that advance a generation in place, checked as those of ops.h are. Arrays of a canvas and
// of candidates are written where they lie, so they must be contiguous.
#pragma once

#include <optional>

#include "edlm/place_candidates.h"
#include "edlm/reveal_chosen.h"
#include "edlm/sum_log_probs.h"
#include "ops.h"

namespace edlm::ring {

// A contiguous array of this type and shape, on the device of `like`.
template <class B>
void require_array(const typename B::Array& array, const char* what, Type type,
                   const std::vector<int64_t>& sizes, const typename B::Array& like,
                   const char* like_what) {
  bool good = B::type(array) == type && B::dim(array) == int64_t(sizes.size());
  int64_t stride = 1;
  for (int64_t d = int64_t(sizes.size()) - 1; good && d >= 0; --d) {
    good = B::size(array, d) == sizes[d] && (sizes[d] <= 1 || B::stride(array, d) == stride);
    stride *= sizes[d];
  }
  require<B>(good, what, " must be contiguous ", name(type), " with shape ", shape(sizes), ", got ",
             B::describe(array));
  require_device<B>(array, what, like, like_what);
}

template <class B>
void require_tokens(const typename B::Array& array, const char* what, int64_t dims,
                    const char* wanted) {
  require<B>(B::type(array) == Type::kInt64 && B::dim(array) == dims, what,
             " must be int64 with shape ", wanted, ", got ", B::describe(array));
}

// Where the tokens of some sequences go. On a device the values are the caller's promise.
template <class B>
void check_places(const typename B::Array& places, const typename B::Array& starts,
                  const typename B::Array& rows, int64_t sequences, int64_t length, int64_t batch) {
  if (!B::on_host(places)) return;
  const int64_t* const place = in<int64_t, B>(places);
  const int64_t* const start = in<int64_t, B>(starts);
  const int64_t* const row = in<int64_t, B>(rows);
  const int64_t count = B::size(places, 0);
  require<B>(start[sequences] - start[0] == count, "starts must rise by ", count,
             ", the number of places, got ", start[sequences] - start[0]);
  for (int64_t i = 0; i < sequences; ++i) {
    require<B>(row[i] >= 0 && row[i] < batch, "rows must be in [0, ", batch, "), got ", row[i]);
    require<B>(start[i] <= start[i + 1] && start[i] >= start[0] && start[i + 1] <= start[sequences],
               "starts must not fall, got ", start[i + 1], " after ", start[i]);
    for (int64_t r = start[i] - start[0]; r < start[i + 1] - start[0]; ++r) {
      require<B>(place[r] >= i * length && place[r] < (i + 1) * length, "places of sequence ", i,
                 " must be in [", i * length, ", ", (i + 1) * length, "), got ", place[r]);
    }
  }
}

template <class B>
std::tuple<typename B::Array, typename B::Array> place_candidates(
    const B& backend, const typename B::Array& tokens, const typename B::Array& log_q,
    const typename B::Array& places, const typename B::Array& starts, const typename B::Array& rows,
    int64_t first_position, const typename B::Array& x0, const typename B::Array& canvas,
    const typename B::Array& failed) {
  require_tokens<B>(tokens, "tokens", 2, "[draws, K]");
  require_tokens<B>(rows, "rows", 1, "[n]");
  require_tokens<B>(x0, "x0", 3, "[E, K, L]");
  require_tokens<B>(canvas, "canvas", 2, "[B, L]");
  const int64_t draws = B::size(tokens, 0), candidates = B::size(tokens, 1);
  const int64_t batch = B::size(canvas, 0), length = B::size(canvas, 1);
  const int64_t sequences = B::size(rows, 0), scored = B::size(x0, 0);
  require<B>(candidates >= 1, "tokens must have K >= 1, got ", B::describe(tokens));
  require<B>(scored <= sequences, "x0 must have at most the ", sequences,
             " sequences of rows, got ", B::describe(x0));
  const auto array = [&](const auto& a, const char* what, Type type, std::vector<int64_t> sizes) {
    require_array<B>(a, what, type, sizes, tokens, "tokens");
  };
  array(tokens, "tokens", Type::kInt64, {draws, candidates});
  array(log_q, "log_q", Type::kFloat32, {draws, candidates});
  array(places, "places", Type::kInt64, {draws});
  array(starts, "starts", Type::kInt64, {sequences + 1});
  array(rows, "rows", Type::kInt64, {sequences});
  // Without a scored sequence x0 is empty, whatever the number of candidates.
  array(x0, "x0", Type::kInt64, {scored, scored ? candidates : B::size(x0, 1), length});
  array(canvas, "canvas", Type::kInt64, {batch, length});
  array(failed, "failed", Type::kInt64, {batch});
  check_places<B>(places, starts, rows, sequences, length, batch);
  const auto xt = B::empty("place_candidates", "xt", tokens, {scored, length}, Type::kInt64);
  const auto sums =
      B::empty("place_candidates", "log_q", tokens, {scored, candidates}, Type::kFloat32);
  const PlaceCandidatesArgs args = {.tokens = in<int64_t, B>(tokens),
                                    .log_q = in<float, B>(log_q),
                                    .places = in<int64_t, B>(places),
                                    .starts = in<int64_t, B>(starts),
                                    .rows = in<int64_t, B>(rows),
                                    .sequences = sequences,
                                    .scored = scored,
                                    .candidates = candidates,
                                    .length = length,
                                    .first_position = first_position,
                                    .xt = out<int64_t, B>(xt),
                                    .x0 = out<int64_t, B>(x0),
                                    .sums = out<float, B>(sums),
                                    .canvas = out<int64_t, B>(canvas),
                                    .failed = out<int64_t, B>(failed)};
  backend.run(args, tokens);
  return {xt, sums};
}

template <class B>
typename B::Array reveal_chosen(const B& backend, const typename B::Array& energy,
                                double temperature, const typename B::Array& keys,
                                const typename B::Array& x0, const typename B::Array& places,
                                const typename B::Array& starts, const typename B::Array& rows,
                                const typename B::Array& columns, const typename B::Array& canvas,
                                const typename B::Array& ess, const typename B::Array& log_z,
                                const typename B::Array& failed) {
  require_tokens<B>(x0, "x0", 3, "[E, K, L]");
  require_tokens<B>(canvas, "canvas", 2, "[B, L]");
  const int64_t sequences = B::size(x0, 0), candidates = B::size(x0, 1), length = B::size(x0, 2);
  const int64_t batch = B::size(canvas, 0);
  require<B>(candidates >= 1, "x0 must have K >= 1, got ", B::describe(x0));
  require<B>(temperature >= kMinTemperature && temperature <= kMaxTemperature,
             "temperature must be in [", kMinTemperature, ", ", kMaxTemperature, "], got ",
             temperature);
  require<B>(B::dim(places) == 1, "places must have shape [reveals], got ", B::describe(places));
  require<B>(B::dim(ess) == 2, "ess must have shape [batch, columns], got ", B::describe(ess));
  require<B>(B::type(energy) == Type::kFloat32 && B::dim(energy) == 2 &&
                 B::size(energy, 0) == sequences && B::size(energy, 1) == candidates,
             "energy must be float32 with shape ", shape({sequences, candidates}), ", got ",
             B::describe(energy));
  require_device<B>(energy, "energy", x0, "x0");
  const int64_t width = B::size(ess, 1);
  const auto array = [&](const auto& a, const char* what, Type type, std::vector<int64_t> sizes) {
    require_array<B>(a, what, type, sizes, x0, "x0");
  };
  array(x0, "x0", Type::kInt64, {sequences, candidates, length});
  array(keys, "keys", Type::kInt64, {sequences});
  array(places, "places", Type::kInt64, {B::size(places, 0)});
  array(starts, "starts", Type::kInt64, {sequences + 1});
  array(rows, "rows", Type::kInt64, {sequences});
  array(columns, "columns", Type::kInt64, {sequences});
  array(canvas, "canvas", Type::kInt64, {batch, length});
  array(ess, "ess", Type::kFloat32, {batch, width});
  array(log_z, "log_z", Type::kFloat32, {batch, width});
  array(failed, "failed", Type::kInt64, {batch});
  check_places<B>(places, starts, rows, sequences, length, batch);
  for (int64_t i = 0; B::on_host(columns) && i < sequences; ++i) {
    const int64_t column = in<int64_t, B>(columns)[i];
    require<B>(column >= 0 && column < width, "columns must be in [0, ", width, "), got ", column);
  }
  const auto energy_ = B::contiguous(energy);
  const auto choice = B::empty("reveal_chosen", "choice", x0, {sequences}, Type::kInt64);
  const RevealChosenArgs args = {.energy = in<float, B>(energy_),
                                 .temperature = static_cast<float>(temperature),
                                 .keys = in<int64_t, B>(keys),
                                 .x0 = in<int64_t, B>(x0),
                                 .places = in<int64_t, B>(places),
                                 .starts = in<int64_t, B>(starts),
                                 .rows = in<int64_t, B>(rows),
                                 .columns = in<int64_t, B>(columns),
                                 .sequences = sequences,
                                 .candidates = candidates,
                                 .length = length,
                                 .width = width,
                                 .choice = out<int64_t, B>(choice),
                                 .canvas = out<int64_t, B>(canvas),
                                 .ess = out<float, B>(ess),
                                 .log_z = out<float, B>(log_z),
                                 .failed = out<int64_t, B>(failed)};
  backend.run(args, x0);
  return choice;
}

template <class B>
typename B::Array sum_log_probs(const B& backend, const typename B::Array& log_probs,
                                int64_t sequences, const std::optional<typename B::Array>& starts) {
  require<B>(B::type(log_probs) == Type::kFloat32 && B::dim(log_probs) == 1,
             "log_probs must be float32 with shape [count], got ", B::describe(log_probs));
  require<B>(sequences >= 0, "sequences must not be negative, got ", sequences);
  const int64_t count = B::size(log_probs, 0);
  if (starts) {
    require_array<B>(*starts, "starts", Type::kInt64, {sequences + 1}, log_probs, "log_probs");
    const int64_t* const start = in<int64_t, B>(*starts);
    for (int64_t i = 0; B::on_host(*starts) && i <= sequences; ++i) {
      require<B>(start[i] >= (i ? start[i - 1] : 0) && start[i] <= count,
                 "starts must not fall and lie in [0, ", count, "], got ", start[i], " at ", i);
    }
  } else {
    require<B>(sequences ? count % sequences == 0 : count == 0,
               "log_probs must fall into sequences of one length, got ", count, " for ", sequences);
  }
  const auto log_probs_ = B::contiguous(log_probs);
  const auto sums = B::empty("sum_log_probs", "sums", log_probs, {sequences}, Type::kFloat64);
  const SumLogProbsArgs args = {.log_probs = in<float, B>(log_probs_),
                                .starts = starts ? in<int64_t, B>(*starts) : nullptr,
                                .count = count,
                                .sequences = sequences,
                                .sums = out<double, B>(sums)};
  backend.run(args, log_probs);
  return sums;
}

}  // namespace edlm::ring
