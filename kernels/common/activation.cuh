// Activations and their derivatives, float and double, in our own arithmetic.
//
// Nothing here calls a math library: every operation is an explicitly rounded add, multiply, FMA or division,
// so that the bits depend neither on a compiler's contractions nor on a library's version.
//
//   exp(x), x <= 0    n = rint(x / ln 2), r = x - n ln 2 in two FMAs, Taylor polynomial of exp(r) on
//                     |r| <= ln(2) / 2 (degree 7 and 13: truncation below 6e-9 and 5e-18), scaled by 2^n in
//                     two steps.
//   Phi(-a), a >= 0   exp(-a^2 / 2) P(q) / (a + 4), q = (a - 4) / (a + 4). P interpolates
//                     (a + 4) erfcx(a / sqrt 2) / 2 in Chebyshev nodes of q in [-1, 1] (50-digit arithmetic;
//                     relative error below 2e-9 and 2e-17).
//   gelu(z) = z Phi(z);  gelu_tanh(z) = z sigmoid(w(z));  silu(z) = z sigmoid(z).
//
// Nothing negative is computed as 1 - (something near 1), so gelu and silu keep their relative accuracy in the
// tails. gelu_tanh's tail loses as many ulps as |w| is large: its rounded argument is multiplied by exp's slope.
#pragma once

#include "common/params.cuh"
#include "common/types.cuh"

template <class T>
struct MathTable;

template <>
struct MathTable<float> {
  static constexpr int kExpTerms = 8, kTailTerms = 13;
  static constexpr float kLog2e = 1.442695e+00f, kLn2Hi = 6.931472e-01f, kLn2Lo = -1.9046542e-09f;
  static constexpr float kExpLow = -104.0f;  // exp below is zero
  static constexpr float kFlat = -200.0f;    // z * Phi(z) and z * sigmoid(z) below are -0
  static constexpr float kInvSqrt2Pi = 3.989423e-01f;
  static constexpr float kTanhA = 1.5957692e+00f;  // 2 sqrt(2 / pi)
  static constexpr float kTanhB = 7.1354814e-02f;  // 0.044715 times that
  __device__ static constexpr float exp_term(int i) {
    constexpr float c[kExpTerms] = {1.e+00f,        1.e+00f,       5.e-01f,        1.6666667e-01f,
                                    4.1666668e-02f, 8.333334e-03f, 1.3888889e-03f, 1.984127e-04f};
    return c[i];
  }
  __device__ static constexpr float tail_term(int i) {
    constexpr float c[kTailTerms] = {7.5528514e-01f, -6.078966e-01f,  3.871374e-01f,   -1.8652217e-01f,
                                     6.0396563e-02f, -7.5376774e-03f, -3.479588e-03f,  1.62195e-03f,
                                     1.3294462e-04f, -2.1548405e-04f, -1.0999026e-06f, 2.1150478e-05f,
                                     -2.1070768e-07f};
    return c[i];
  }
};

template <>
struct MathTable<double> {
  static constexpr int kExpTerms = 14, kTailTerms = 25;
  static constexpr double kLog2e = 1.4426950408889634, kLn2Hi = 0.6931471805599453,
                          kLn2Lo = 2.3190468138462996e-17;
  static constexpr double kExpLow = -746.0;
  static constexpr double kFlat = -1600.0;
  static constexpr double kInvSqrt2Pi = 0.3989422804014327;
  static constexpr double kTanhA = 1.5957691216057308;
  static constexpr double kTanhB = 0.07135481627260025;
  __device__ static constexpr double exp_term(int i) {
    constexpr double c[kExpTerms] = {1.0,
                                     1.0,
                                     0.5,
                                     0.16666666666666666,
                                     0.041666666666666664,
                                     0.008333333333333333,
                                     0.001388888888888889,
                                     0.0001984126984126984,
                                     2.48015873015873e-05,
                                     2.7557319223985893e-06,
                                     2.755731922398589e-07,
                                     2.505210838544172e-08,
                                     2.08767569878681e-09,
                                     1.6059043836821613e-10};
    return c[i];
  }
  __device__ static constexpr double tail_term(int i) {
    constexpr double c[kTailTerms] = {
        0.7552851304157515,     -0.6078966419718923,     0.38713740074221453,    -0.18652185795963533,
        0.06039657489093607,    -0.007540188967419565,   -0.0034796923673884156, 0.0016308184678064444,
        0.00013334431270030784, -0.00023109501999200649, -1.908265085342679e-06, 3.5145122560125815e-05,
        7.167263978705016e-07,  -5.921638801978817e-06,  -6.299974265164222e-07, 1.0248325060946323e-06,
        2.727176083262385e-07,  -1.5982676610438677e-07, -8.713294621467491e-08, 1.7881872409503415e-08,
        2.1604426842720404e-08, -6.021003727951476e-10,  -3.798041859957449e-09, -1.1742107539247065e-10,
        3.51569242668093e-10};
    return c[i];
  }
};

// ---- exp of a number <= 0 ----

__device__ __forceinline__ int round_to_int(float x) { return __float2int_rn(x); }
__device__ __forceinline__ int round_to_int(double x) { return __double2int_rn(x); }
template <class T>
__device__ __forceinline__ T power_of_two(int n) {
  if constexpr (sizeof(T) == 4) {
    return __int_as_float((n + 127) << 23);
  } else {
    return __longlong_as_double(static_cast<long long>(n + 1023) << 52);
  }
}

template <class T>
__device__ __forceinline__ T exp_nonpositive(T x) {
  using Table = MathTable<T>;
  if (x < Table::kExpLow) x = Table::kExpLow;
  const int n = round_to_int(mul_rn(x, Table::kLog2e));
  T r = fma_rn(-T(n), Table::kLn2Hi, x);
  r = fma_rn(-T(n), Table::kLn2Lo, r);
  T y = Table::exp_term(Table::kExpTerms - 1);
#pragma unroll
  for (int i = Table::kExpTerms - 2; i >= 0; --i) y = fma_rn(y, r, Table::exp_term(i));
  // In two steps, because 2^n itself may be too small for a normal number.
  const int half = n / 2;
  return mul_rn(mul_rn(y, power_of_two<T>(half)), power_of_two<T>(n - half));
}

// ---- the normal distribution and the logistic function ----

// exp(-a^2 / 2). The square's rounding error would be multiplied by a^2 / 2, so it is carried along.
template <class T>
__device__ __forceinline__ T gaussian(T a) {
  const T square = mul_rn(a, a);
  const T error = fma_rn(a, a, -square);
  const T e = exp_nonpositive(mul_rn(T(-0.5), square));
  // An infinite square has no error to carry.
  return square <= T(1e4) ? fma_rn(e, mul_rn(T(-0.5), error), e) : e;
}

// The distribution function at z, given gauss = gaussian(z).
template <class T>
__device__ __forceinline__ T normal_cdf(T z, T gauss) {
  using Table = MathTable<T>;
  const T a = z < 0 ? -z : z;
  if (a > T(64)) return z > 0 ? T(1) : T(0);  // also Inf; gauss is zero from here on
  const T q = div_rn(add_rn(a, T(-4)), add_rn(a, T(4)));
  T y = Table::tail_term(Table::kTailTerms - 1);
#pragma unroll
  for (int i = Table::kTailTerms - 2; i >= 0; --i) y = fma_rn(y, q, Table::tail_term(i));
  const T tail = div_rn(mul_rn(gauss, y), add_rn(a, T(4)));
  return z > 0 ? add_rn(T(1), -tail) : tail;
}

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  const T e = exp_nonpositive(x > 0 ? -x : x);
  return div_rn(x > 0 ? T(1) : e, add_rn(T(1), e));
}

// Twice the argument of the tanh in gelu_tanh: 2 sqrt(2 / pi) (z + 0.044715 z^3).
template <class T>
__device__ __forceinline__ T tanh_argument(T z) {
  const T square = mul_rn(z, z);
  return mul_rn(z, fma_rn(MathTable<T>::kTanhB, square, MathTable<T>::kTanhA));
}

// ---- activations ----

template <class T>
__device__ __forceinline__ T activate(T z, int activation) {
  if (activation == kNone) return z;
  if (activation == kRelu) return z > 0 || z != z ? z : T(0);
  if (z < MathTable<T>::kFlat) return T(-0.0);  // -Inf times zero would be NaN
  if (activation == kGelu) return mul_rn(z, normal_cdf(z, gaussian(z)));
  return mul_rn(z, sigmoid(activation == kSilu ? z : tanh_argument(z)));
}

// act'(z). Beyond |z| = 64 every slope but silu's, whose tail is longer, is exactly 0 or 1 in float and in
// double.
template <class T>
__device__ __forceinline__ T activation_slope(T z, int activation) {
  if (activation == kRelu) return z > 0 ? T(1) : (z != z ? z : T(0));
  if (z < MathTable<T>::kFlat) return T(0);
  if (activation == kSilu) {
    if (z > -MathTable<T>::kFlat) return T(1);
    const T s = sigmoid(z);
    return fma_rn(mul_rn(z, s), sigmoid(-z), s);
  }
  if (z > T(64)) return T(1);
  if (z < T(-64)) return T(0);
  if (activation == kGelu) {
    const T gauss = gaussian(z);
    return fma_rn(z, mul_rn(gauss, MathTable<T>::kInvSqrt2Pi), normal_cdf(z, gauss));
  }
  // gelu_tanh: s + z s (1 - s) w'(z), w = tanh_argument, 1 - s = sigmoid(-w)
  const T w = tanh_argument(z);
  const T s = sigmoid(w);
  const T dw = fma_rn(mul_rn(T(3), MathTable<T>::kTanhB), mul_rn(z, z), MathTable<T>::kTanhA);
  return fma_rn(mul_rn(mul_rn(z, dw), s), sigmoid(-w), s);
}
