// A model that a page holds, in C and C++ alike: its numbers are integers by a hash and exact in
// float32, so that any language computes the same (generate.py has it in Python).
#pragma once

#include <stdint.h>

enum { LENGTH = 24, VOCAB = 17, MASK = 16 };

// A number in [0, 256) of a pair of tokens, a place and a token.
static inline int64_t toy_hash(int64_t before, int64_t after, int64_t place, int64_t token) {
  return (7919 * before + 104729 * after + 1299709 * place + 15485863 * token) % 4093 % 256;
}

// The denoiser: logits[VOCAB] of a position, by the tokens beside it. The mask is never drawn.
static inline void toy_logits(const int64_t* xt, int64_t l, float* logits) {
  const int64_t before = l > 0 ? xt[l - 1] : MASK, after = l + 1 < LENGTH ? xt[l + 1] : MASK;
  for (int64_t v = 0; v < VOCAB; ++v) {
    logits[v] = (float)(toy_hash(before, after, l, v) - 128) / 64;
  }
}

// The energy of a complete sequence x0[LENGTH], lower being likelier: neighbours get along or not.
static inline float toy_energy(const int64_t* x0) {
  int64_t sum = 0;
  for (int64_t l = 1; l < LENGTH; ++l) sum += toy_hash(x0[l - 1], x0[l], 0, 0);
  return (float)sum / 256;
}
