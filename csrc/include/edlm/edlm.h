/// @file
/// All ops and the reveal plan, for C (edlm_cpu_*, edlm_cuda_*) and C++ (edlm::cpu, edlm::cuda).
///
/// An op takes a struct of pointers and sizes and, on the CPU, the range of rows to work on:
/// threads are its caller's, who gives each a range of its own. On CUDA it takes a stream and never
/// waits; `stream` is a cudaStream_t, `workspace` device memory of the size that the op's
/// *_workspace asks for. Nothing is kept from call to call and nothing is shared: any number of
/// calls may run at a time, as long as none writes what another reads.
///
/// The entry points of C check the scalars of their struct, and that no pointer that is needed is
/// null, and let no exception out; what indices point to is their caller's promise. Those of C++
/// check nothing, and on the CPU may throw std::bad_alloc.
#pragma once

#include "edlm/place_candidates.h"
#include "edlm/plan.h"
#include "edlm/resample.h"
#include "edlm/residual_draw.h"
#include "edlm/reveal_chosen.h"
#include "edlm/reveal_steps.h"
#include "edlm/sample_candidates.h"
#include "edlm/sample_weights.h"
#include "edlm/stream_keys.h"
#include "edlm/sum_log_probs.h"
#include "edlm/token_log_probs.h"
#include "edlm/version.h"
