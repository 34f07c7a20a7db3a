// A server without Python: loads the package that compiled.py makes and generates with it.
//
//   aoti PACKAGE LIBRARY STEPS LENGTH MASK SEED...      one line of tokens for each seed
#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 7) return std::cerr << "PACKAGE LIBRARY STEPS LENGTH MASK SEED...\n", 2;
  // The library registers the ops with the libtorch of this program, as it does with Python's.
  if (!dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL)) return std::cerr << dlerror() << "\n", 1;
  const int64_t steps = std::atoll(argv[3]), length = std::atoll(argv[4]);
  std::vector<int64_t> words;
  for (int i = 6; i < argc; ++i) words.push_back(std::atoll(argv[i]));
  const int64_t batch = int64_t(words.size());

  torch::inductor::AOTIModelPackageLoader package(argv[1]);
  const at::Tensor seeds = at::from_blob(words.data(), {batch}, at::kLong);
  at::Tensor canvas = at::full({batch, length}, std::atoll(argv[5]), at::kLong);
  for (int64_t step = 1; step <= steps + 1; ++step) {
    canvas = package.run({canvas, seeds, at::full({batch}, step, at::kLong)})[0];
  }
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* tokens = canvas.const_data_ptr<int64_t>() + b * length;
    for (int64_t i = 0; i < length; ++i) std::cout << tokens[i] << (i + 1 < length ? " " : "\n");
  }
}
