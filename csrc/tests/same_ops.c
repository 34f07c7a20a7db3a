/* Runs every op on numbers from standard input and writes all that it makes to standard output, as
 * raw bytes: as_python.py compares them with torch's and NumPy's. One source for both languages, as
 * the structs are. */
#include <edlm/edlm.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef __cplusplus
#define RUN(op, args, rows) edlm::cpu::op(args, 0, rows)
#else
#define RUN(op, args, rows) edlm_cpu_##op(&args, 0, rows)
#endif

enum { LENGTH = 5 };

static void* made(int64_t bytes) {
  void* const memory = calloc((size_t)(bytes ? bytes : 1), 1);
  if (!memory) exit(2);
  return memory;
}

static void* given(int64_t bytes) {
  void* const memory = made(bytes);
  if (fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(3);
  return memory;
}

static void give(void* memory, int64_t bytes) {
  fwrite(memory, 1, (size_t)bytes, stdout);
  free(memory);
}

static void require(edlm_status status) {
  if (status.code == EDLM_OK) return;
  fprintf(stderr, "%s (row %lld)\n", edlm_status_string(status.code), (long long)status.row);
  exit(1);
}

#define I64(count) (int64_t*)made(8 * (count))
#define F32(count) (float*)made(4 * (count))

int main(void) {
  int64_t* const sizes = (int64_t*)given(5 * 8);
  const int64_t rows = sizes[1], vocab = sizes[2], k = sizes[3], scored = sizes[4];
  const edlm_dtype dtype = (edlm_dtype)sizes[0];
  const int64_t matrix = rows * vocab * (dtype == EDLM_FLOAT32 ? 4 : 2);
  void* const p = given(matrix);
  void* const q = given(matrix);
  void* const weights = given(matrix);
  int64_t* const keys = (int64_t*)given(8 * rows);
  int64_t* const coordinates = (int64_t*)given(16 * rows);
  int64_t* const targets = (int64_t*)given(8 * rows);
  float* const log_weights = (float*)given(4 * rows * k);
  double* const mask_probs = (double*)given(8 * 8);
  int64_t* const places = (int64_t*)given(8 * rows);
  int64_t* const starts = (int64_t*)given(8 * (rows + 1));
  int64_t* const order = (int64_t*)given(8 * rows);
  int64_t* const columns = (int64_t*)given(8 * rows);

  edlm_stream_keys_args stream = {keys, coordinates, rows, 2, I64(rows)};
  require(RUN(stream_keys, stream, rows));
  give(stream.keys, 8 * rows);

  edlm_sample_candidates_args draw = {
      p, dtype, rows, vocab, vocab, keys, k, 3, 0.9f, 0, 1, 0, I64(rows * k), F32(rows * k), NULL};
  require(RUN(sample_candidates, draw, rows));
  edlm_sample_candidates_args cut = draw;
  cut.top_k = 40;
  cut.top_p = 0.9;
  cut.min_p = 0.01;
  cut.tokens = I64(rows * k);
  cut.log_q = F32(rows * k);
  cut.statistics = F32(rows * 3);
  require(RUN(sample_candidates, cut, rows));
  give(cut.tokens, 8 * rows * k);
  give(cut.log_q, 4 * rows * k);
  give(cut.statistics, 12 * rows);

  edlm_token_log_probs_args score = {p, dtype, rows, vocab, vocab, targets, 3, 0.9f, F32(rows)};
  require(RUN(token_log_probs, score, rows));
  give(score.log_probs, 4 * rows);

  edlm_sample_weights_args weigh = {weights, dtype, rows,          vocab,        vocab,
                                    keys,    k,     I64(rows * k), F32(rows * k)};
  require(RUN(sample_weights, weigh, rows));
  give(weigh.tokens, 8 * rows * k);
  give(weigh.log_q, 4 * rows * k);

  const edlm_logit_rows of_p = {p, dtype, rows, vocab, vocab, 3, 0.9f};
  const edlm_logit_rows of_q = {q, dtype, rows, vocab, vocab, -1, 1.25f};
  edlm_residual_draw_args redraw = {of_p, of_q, targets, keys, I64(rows), NULL, F32(rows)};
  redraw.accepted = (uint8_t*)made(rows);
  require(RUN(residual_draw, redraw, rows));
  give(redraw.tokens, 8 * rows);
  give(redraw.accepted, rows);
  give(redraw.log_p, 4 * rows);

  edlm_resample_args choose = {log_weights, rows, k, keys, I64(rows), F32(rows), F32(rows)};
  require(RUN(resample, choose, rows));
  give(choose.choice, 8 * rows);
  give(choose.ess, 4 * rows);
  give(choose.log_mean_weight, 4 * rows);

  edlm_reveal_steps_args reveal = {keys, rows, LENGTH, 7, mask_probs, I64(rows * LENGTH)};
  require(RUN(reveal_steps, reveal, rows));
  give(reveal.steps, 8 * rows * LENGTH);

  edlm_sum_log_probs_args sum = {draw.log_q, NULL, rows * k, rows, (double*)made(8 * rows)};
  require(RUN(sum_log_probs, sum, rows));
  give(sum.sums, 8 * rows);

  edlm_place_candidates_args place = {draw.tokens,
                                      draw.log_q,
                                      places,
                                      starts,
                                      order,
                                      rows,
                                      scored,
                                      k,
                                      LENGTH,
                                      1,
                                      I64(scored * LENGTH),
                                      I64(scored * k * LENGTH),
                                      F32(scored * k),
                                      I64(rows * LENGTH),
                                      I64(rows)};
  require(RUN(place_candidates, place, rows));
  edlm_reveal_chosen_args chosen = {
      log_weights,   0.7f,          keys,        place.x0, places, starts,      order,
      columns,       scored,        k,           LENGTH,   2,      I64(scored), place.canvas,
      F32(rows * 2), F32(rows * 2), place.failed};
  require(RUN(reveal_chosen, chosen, scored));
  give(place.xt, 8 * scored * LENGTH);
  give(place.sums, 4 * scored * k);
  give(place.x0, 8 * scored * k * LENGTH);
  give(chosen.choice, 8 * scored);
  give(place.canvas, 8 * rows * LENGTH);
  give(chosen.ess, 8 * rows);
  give(chosen.log_z, 8 * rows);
  give(place.failed, 8 * rows);
  give(draw.tokens, 8 * rows * k);
  give(draw.log_q, 4 * rows * k);
  free(sizes), free(p), free(q), free(weights), free(keys), free(coordinates), free(targets);
  free(log_weights), free(mask_probs), free(places), free(starts), free(order), free(columns);
  return 0;
}
