// What happens to a finished sum, in one place: bias, stored pre-activation, activation, the one rounding,
// the store.
#pragma once

#include "common/activation.cuh"
#include "common/types.cuh"

// value + bias[col], where there is a bias.
template <class Config, class Params, class Acc>
__device__ __forceinline__ Acc add_bias(const Params& p, int col, Acc value) {
  if (p.bias == nullptr) return value;
  const auto* bias = static_cast<const typename Config::Bias*>(p.bias);
  return add_rn(value, to_acc<Acc>(bias[col * p.bias_stride]));
}

// d[row, col] = act(value + bias[col]). Params is GemmParams or OrderedReduceParams. The branches are the
// same for all threads of a launch: one kernel serves every combination.
template <class Config, class Params, class Acc>
__device__ __forceinline__ void finish(const Params& p, int row, int col, Acc value) {
  using Out = typename Config::Out;
  value = add_bias<Config>(p, col, value);
  if (p.preact != nullptr) {
    store_rounded(static_cast<Out*>(p.preact) + row * p.ldp + col, value);
  }
  store_rounded(static_cast<Out*>(p.d) + row * p.ldd + col, activate(value, p.activation));
}

// What an accumulating output holds before the launch.
template <class Config, class Params>
__device__ __forceinline__ typename Config::Acc previous(const Params& p, int row, int col) {
  return to_acc<typename Config::Acc>(static_cast<const typename Config::Out*>(p.d)[row * p.ldd + col]);
}
